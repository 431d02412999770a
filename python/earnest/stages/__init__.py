# SPDX-License-Identifier: Apache-2.0
"""The stages of the recipe, one module each. The command line finds in ``earnest.stages.<name>``

    Settings    a dataclass of defaults (see earnest.settings); its field ``run: RunSettings`` says how a run
                is kept
    main(settings: Settings, run_dir: Path) -> None | dict
                does the stage in `run_dir`, going on from a saved state if there is one; a returned dict of
                plain values is what ``--json`` prints

and does the rest: the YAML file and --set, printing the resolved settings, turning errors into one line.
"""
