# SPDX-License-Identifier: Apache-2.0
"""The stages of the recipe, one module each. The command line finds in ``earnest.stages.<name>``

    Settings                                  a dataclass of defaults (see earnest.settings); a field
                                              ``run: RunSettings`` says how the run is kept
    main(settings: Settings, run_dir: Path)   does the stage in `run_dir`, going on from a saved state if there is one;
                                              returns None or a dict of plain values, which ``--json`` prints

and does the rest itself: reading the YAML file and --set, printing the resolved settings, turning errors into one line.
"""
