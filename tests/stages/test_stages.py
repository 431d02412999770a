# SPDX-License-Identifier: Apache-2.0
"""Every stage on files of its own: it learns, and a run killed in its middle ends with the weights it would
have had."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import small_world
from earnest.errors import InvalidInput
from earnest.learn.advantage import AdvantageSettings
from earnest.learn.optimise import PolicySettings, experience_of
from earnest.learn.rollout import sample
from earnest.learn.types import Rewards
from earnest.learn.update import Learner, Update, UpdateSettings
from earnest.model import ValueModel
from earnest.run import Run
from earnest.settings import RunSettings
from earnest.stages import judge, midtrain, rlhf, rlvr, sft
from earnest.stages.optimiser import OptimiserSettings
from earnest.stages.source import DataSettings, load_cases, load_model
from earnest.stages.supervised import examples


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, dialogues with and without sound, and preferences."""
    folder = tmp_path_factory.mktemp("world")
    words = small_world.tokenizer()
    small_world.model(words).save_pretrained(folder / "new")
    words.save(folder / "new")
    numbers = np.random.default_rng(0)
    dialogues, preferences = [], []
    for index in range(8):
        question = [{"type": "text", "text": f"what is {index} plus two"}]
        if index % 2:
            soundfile.write(folder / f"{index}.wav", 0.1 * numbers.standard_normal(4000 + 700 * index), 16000)
            question.insert(0, {"type": "audio", "audio": f"{index}.wav"})
        user = {"role": "user", "content": question}
        reply = {"role": "assistant", "reasoning": f"{index} + 2", "content": f"It is {index + 2}."}
        rubric = ["gives the right answer"] if index % 4 < 2 else None
        dialogues.append(
            {"messages": [user, reply], "answer": str(index + 2), "rubric": rubric, "reference": "3."}
        )
        verdict = (-2, -1, 1, 2)[index % 4]
        preferences.append(
            {"messages": [user], "a": "It is 3.", "b": "4.", "verdict": verdict, "rubric": rubric}
        )
    for name, lines in (("dialogues", dialogues), ("preferences", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Rewards need replies that come to an end and are right now and then.
    learnt = replace(settings_of(sft, folder), model=str(folder / "new"), steps=80, batch=8)
    sft.main(learnt, folder / "model")
    return folder


def settings_of(stage, world):
    often = RunSettings(save_every_steps=1, tensorboard=False, threads=1)
    data = DataSettings(files=(str(world / "dialogues.jsonl"),))
    model = str(world / "model")
    optimiser = OptimiserSettings(lr=1e-2, warmup_steps=1)
    update = UpdateSettings(lr=1e-2, minibatches=2, warmup_steps=1)
    policy = PolicySettings(
        steps=4, prompts=3, per_prompt=3, max_new_tokens=30, critic_warmup=1, update=update, temperature=1.5
    )
    common = {"model": model, "data": data, "run": often}
    if stage is midtrain:
        return midtrain.Settings(steps=5, batch=3, optimiser=optimiser, **common)
    if stage is sft:
        return sft.Settings(steps=5, batch=3, optimiser=optimiser, **common)
    if stage is rlvr:
        choice = rlvr.ChoiceSettings(trials=2, fewest=0, most=2)
        return rlvr.Settings(policy=replace(policy, estimator="group"), choice=choice, **common)
    if stage is judge:
        data = DataSettings(files=(str(world / "preferences.jsonl"),))
        return judge.Settings(steps=5, batch=3, optimiser=optimiser, **(common | {"data": data}))
    return rlhf.Settings(judge=model, policy=replace(policy, kl=0.05), **common)


def weights(folder):
    return load_file(folder / "model.safetensors")


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "wall"} for line in lines]


@pytest.mark.parametrize(
    "stage", [midtrain, sft, rlvr, judge, rlhf], ids=lambda stage: stage.__name__.split(".")[-1]
)
def test_a_killed_stage_goes_on_to_the_same_weights_and_log(stage, world, tmp_path, monkeypatch):
    settings = settings_of(stage, world)
    stage.main(settings, tmp_path / "whole")

    class Killed(BaseException):
        pass

    write = Run.log

    def log_until_killed(self, step, **metrics):
        write(self, step, **metrics)
        if step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_until_killed)
        with pytest.raises(Killed):
            stage.main(settings, tmp_path / "killed")
    assert not (tmp_path / "killed" / "config.json").exists()
    stage.main(settings, tmp_path / "killed")

    whole, killed, began = (
        weights(folder) for folder in (tmp_path / "whole", tmp_path / "killed", world / "model")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert any(not torch.equal(whole[name], began[name]) for name in whole)  # it did train
    assert all(
        torch.equal(whole[name], began[name]) for name in whole if name.startswith("encoder.")
    )  # frozen
    assert logged(tmp_path / "whole") == logged(tmp_path / "killed")


def test_a_finished_stage_has_nothing_left_to_do(world, tmp_path, monkeypatch):
    settings = settings_of(sft, world)
    sft.main(settings, tmp_path)
    before = weights(tmp_path)
    monkeypatch.setattr(Run, "steps", lambda *a, **k: pytest.fail("trained again"))
    sft.main(settings, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())


def learner_and_experience(world, estimator="gae"):
    policy, words = load_model(world / "model")
    from earnest.learn.hearing import Hearing
    from earnest.learn.optimise import prompts_of

    cases = load_cases(DataSettings(files=(str(world / "dialogues.jsonl"),)), 80, device="cpu")
    critic = ValueModel(policy) if estimator == "gae" else None
    learner = Learner(policy, Hearing(policy), 0.8, critic)
    prompts = prompts_of(cases[:4], words, policy)
    rollouts = sample(
        policy,
        words,
        learner.hearing,
        prompts,
        per_prompt=3,
        max_new_tokens=6,
        temperature=0.8,
        generator=torch.Generator().manual_seed(0),
    )
    scalar = torch.linspace(-1, 1, len(rollouts))
    valid = torch.ones(len(rollouts), dtype=torch.bool)
    settings = PolicySettings(estimator=estimator, temperature=0.8, advantage=AdvantageSettings())
    experience, _ = experience_of(learner, rollouts, Rewards(scalar, valid), settings)
    return learner, experience


@pytest.mark.parametrize("estimator", ["gae", "group"])
def test_the_first_step_is_reinforce_and_a_changed_policy_is_noticed(world, estimator):
    learner, experience = learner_and_experience(world, estimator)
    update = Update(learner, UpdateSettings(), steps=1)
    update.check_first_step(experience)
    with torch.no_grad():
        learner.policy.model.norm.weight.mul_(1.001)
    with pytest.raises(RuntimeError, match="expected exactly 1"):
        update.check_first_step(experience)


def test_an_update_looks_whether_the_sampler_gave_the_trainers_numbers(world):
    learner, experience = learner_and_experience(world)
    metrics = Update(learner, UpdateSettings(lr=0.0), steps=1)(experience, 0, torch.Generator())
    assert metrics["sampler_gap_max"] == metrics["sampler_gap_mean"] == 0.0
    with torch.no_grad():
        learner.policy.model.norm.weight.mul_(1.001)
    with pytest.raises(RuntimeError, match="expected the trainer's log-probabilities"):
        Update(learner, UpdateSettings(), steps=1)(experience, 0, torch.Generator())


def test_where_the_sampler_is_another_the_old_numbers_are_the_trainers(world, monkeypatch):
    learner, experience = learner_and_experience(world)
    rollouts = experience.rollouts
    monkeypatch.setattr(Learner, "sampler_is_exact", False)
    rollouts.logp = [logp + 0.25 for logp in rollouts.logp]
    assert torch.equal(learner.read(rollouts, 100_000)[0], experience.logp_old)
    metrics = Update(learner, UpdateSettings(minibatches=2), steps=1)(experience, 0, torch.Generator())
    assert metrics["sampler_gap_max"] == pytest.approx(0.25, abs=1e-6)


def test_an_update_does_not_depend_on_how_many_forward_passes_it_takes(world):
    moved = []
    for max_tokens in (100_000, 60):
        learner, experience = learner_and_experience(world)
        settings = UpdateSettings(max_tokens=max_tokens, warmup_steps=0, lr=1e-3)
        update = Update(learner, settings, steps=1)
        update(experience, 0, torch.Generator().manual_seed(0))
        moved.append(torch.cat([p.detach().flatten() for p in learner.policy.model.parameters()]))
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2e-5)


def test_replies_without_a_valid_reward_teach_nothing(world):
    learner, experience = learner_and_experience(world, "group")
    rollouts = experience.rollouts
    valid = torch.ones(len(rollouts), dtype=torch.bool)
    valid[0] = False
    settings = PolicySettings(estimator="group", temperature=0.8)
    with pytest.raises(RuntimeError, match="valid"):
        experience_of(learner, rollouts, Rewards(torch.zeros(len(rollouts)), valid), settings)


def test_the_cases_of_a_step_are_a_pure_function_of_it(world):
    cases = load_cases(DataSettings(files=(str(world / "dialogues.jsonl"),)), 80, device="cpu")
    settings = settings_of(rlhf, world)

    def names(step):
        return [(case.id, case.rubric) for case in rlhf.cases_of_step(cases, settings, step)]

    assert names(3) == names(3)
    assert len({str(names(step)) for step in range(6)}) > 1
    kinds = [rubric is not None for _, rubric in names(0)]
    assert sum(kinds) == round(settings.policy.prompts * settings.rubric_fraction)


def test_a_stage_without_data_or_with_a_bad_line_says_so(world, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(InvalidInput, match="at least one dialogue"):
        load_cases(DataSettings(files=(str(empty),)), 80, device="cpu")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n')
    with pytest.raises(InvalidInput, match=r"bad\.jsonl:1"):
        load_cases(DataSettings(files=(str(bad),)), 80, device="cpu")


def test_a_share_of_the_sums_is_learnt_as_one_looks_them_up():
    words = small_world.tokenizer()
    model, generator = small_world.model(words), torch.Generator().manual_seed(0)
    case = replace(small_world.cases()[0], reasoning="one two three. 1 + 2 = 3.", hasty="one two. 2 = 3.")
    with_sum, without = [case] * 200, [replace(case, hasty=None)] * 20
    for share, low, high in ((0.0, 0, 0), (1.0, 200, 200), (0.3, 35, 90)):
        learnt = words.decode(
            examples([*with_sum, *without], words, model, generator, False, share).targets.tolist()
        )
        assert low <= learnt.count("one two. 2 = 3.") <= high
        assert learnt.count("one two") == 220
