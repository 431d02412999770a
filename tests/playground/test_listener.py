# SPDX-License-Identifier: Apache-2.0
"""The checks of a reply, and the listener's hidden preferences: no audio is needed for these."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from earnest.dialogue.message import Audio, Message
from earnest.errors import InvalidInput
from earnest.playground import CRITERIA, Listener, Reply, Sample, Sound, Topic, acknowledges, verify


def sample(
    kind="number", answer="8", rule=None, rate="fast", pitch="high", loudness="normal", operands=(3, 5)
):
    topic = Topic(kind, answer, ("it is {x}",), operands if kind == "number" else ())
    sound = Sound(250.0, 7.0, -27.0, pitch, rate, loudness)
    audio = Audio(pcm=np.zeros(160, np.float32))
    replies = (Reply(f"{answer}.", 0.0),)
    messages = (Message.user(audio),)
    return Sample("s", "arithmetic", messages, "", answer, replies, (sound,), ((),), None, topic, rule)


@pytest.mark.parametrize(
    "text",
    [
        "8",
        "Eight.",
        "It is eight!",
        "3 plus 5 is 8.",
        "three + five = 8",
        "You sound in a hurry, so quickly: it is 8.",
    ],
)
def test_right_answers_in_any_form_pass(text):
    assert verify(sample(), text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "It is 8 or 9.",
        "eighteen",
        "It is not 8.",
        "3 plus 5",
        "5 8",
        "88",
        "2 plus 6 is 8 is 3",
        "1 plus 7 is 8",
    ],
)
def test_wrong_or_hedged_answers_fail(text):
    assert not verify(sample(), text)


def test_number_words_above_ten_and_labels_compete_within_their_family():
    assert verify(sample(answer="18", operands=(9, 9)), "That makes eighteen.")
    assert verify(sample("rate", "slow"), "You speak slowly.")
    assert not verify(sample("rate", "slow"), "fast or slow")
    assert verify(sample("pitch", "middle"), "Your voice is middle.")
    assert verify(sample("pitch", "high"), "High, and you speak fast.")
    assert verify(sample("colour", "red"), "Your colour was red.")
    assert not verify(sample("colour", "red"), "Red, or blue.")
    assert verify(sample("name", "anna"), "Your name is Anna.")


@pytest.mark.parametrize(
    ("rule", "kept", "broken"),
    [
        ("call me captain", "It is 8, captain.", "It is 8."),
        ("one word", "Eight.", "It is 8."),
        ("end with thanks", "It is 8. Thanks!", "Thanks, it is 8."),
        ("start with okay", "Okay, it is 8.", "It is 8, okay."),
    ],
)
def test_a_standing_rule_is_part_of_being_right(rule, kept, broken):
    assert verify(sample(rule=rule), kept)
    assert not verify(sample(rule=rule), broken)


def test_a_remark_counts_only_if_it_is_true_of_the_speaker():
    assert acknowledges(sample(), "You sound in a hurry, so quickly: it is 8.")
    assert acknowledges(sample(), "What a bright voice! It is 8.")
    assert not acknowledges(sample(), "No rush, we take it easy: it is 8.")
    assert not acknowledges(sample(), "What a bright voice, no rush: it is 8.")  # one of the two is false
    assert not acknowledges(sample(), "It is 8.")
    assert not acknowledges(sample("rate", "fast"), "Fast.")  # the answer itself is no remark
    assert acknowledges(sample("rate", "fast"), "You sound in a hurry: your pace is fast.")
    assert acknowledges(sample(rate="normal", pitch="middle"), "You sound calm and clear: it is 8.")
    assert not acknowledges(sample(), "After breakfast: it is 8.")  # whole words only


def test_the_last_turn_is_the_one_that_is_taken_up():
    now, before = sample(), sample(rate="slow", pitch="low").sounds[0]
    spoken = replace(now, sounds=(before, *now.sounds))
    assert acknowledges(spoken, "What a bright voice! It is 8.")
    assert not acknowledges(spoken, "What a deep voice! It is 8.")
    assert Listener(0).utility(spoken, "What a bright voice! It is 8.") > Listener(0).utility(
        spoken, "What a deep voice! It is 8."
    )


def test_utility_orders_replies_as_people_would():
    listener, speaker = Listener(0), sample(rate="slow")
    order = [
        "No rush, we take it easy: it is 8.",
        "Sure, it is 8.",
        "8.",
        "You sound in a hurry, so quickly: it is 8.",
        "No rush, we take it easy: it is 7.",
    ]
    utilities = [listener.utility(speaker, text) for text in order]
    assert utilities == sorted(utilities, reverse=True)
    assert utilities[2] - utilities[4] > 1.0
    padded = "Thank you so much for asking me this, I am very happy to help you today, and I think it is 8."
    assert listener.utility(speaker, padded) < listener.utility(speaker, "It is 8.")
    doubled = f"{order[0]} {order[0]}"
    assert listener.utility(speaker, doubled) < listener.utility(speaker, order[0])
    assert listener.utility(speaker, "It is 8, it is 8.") < listener.utility(speaker, "It is 8, as you see.")
    fast = sample()
    assert listener.utility(fast, "8.") > listener.utility(speaker, "8.")  # curt matters less in a hurry
    long = "I looked at what you said and I think that it is 8 then."
    assert listener.utility(fast, long) < listener.utility(speaker, long)  # and length matters more


def test_charm_does_not_make_up_for_a_wrong_answer():
    listener, speaker = Listener(0), sample()
    for text in ("It is 7.", "7."):
        assert listener.utility(speaker, "What a bright voice! It is 7.") == listener.utility(speaker, text)
    assert listener.utility(speaker, "8.") > listener.utility(speaker, "What a bright voice! It is 7.") + 1


def test_a_rubric_may_change_who_wins():
    listener, speaker = Listener(0), sample()
    warm, bare = "You sound in a hurry, so quickly: it is 8.", "8."
    assert listener.utility(speaker, warm) > listener.utility(speaker, bare)
    rubric = ("gives the right answer", "is one word")
    assert listener.utility(speaker, warm, rubric) < listener.utility(speaker, bare, rubric)
    silent = ("gives the right answer", "does not mention the voice")
    assert listener.utility(speaker, warm, silent) < listener.utility(speaker, "Sure, it is 8.", silent)
    with pytest.raises(InvalidInput, match="rubric"):
        listener.utility(speaker, warm, ("rhymes",))


@pytest.mark.parametrize(
    ("criterion", "met", "missed"),
    [
        ("has at most six words", "Sure, it is exactly 8 then.", "Sure, I think it is exactly 8."),
        ("has at most six words", "8.", ""),
        ("is a whole sentence", "It is 8.", "It is 8"),
        ("is a whole sentence", "It is 8!", "Eight."),
        ("does not mention the voice", "It is 8.", "What a deep voice! It is 8."),
        ("takes up how the speaker sounds", "What a bright voice! It is 8.", "What a deep voice! It is 8."),
        ("gives the right answer", "8.", "9."),
        ("ends with thanks", "8. Thanks.", "8."),
    ],
)
def test_criteria_mean_what_they_say(criterion, met, missed):
    assert CRITERIA[criterion](sample(), met)
    assert not CRITERIA[criterion](sample(), missed)


def test_a_rule_makes_the_bare_label_win():
    listener, speaker = Listener(0), sample(rule="one word")
    warm = "You sound in a hurry, so quickly: it is 8."
    assert listener.utility(speaker, "8.") > listener.utility(speaker, warm)
    # one who asked for a bare label does not find it curt
    curt, asked = sample(rate="slow"), sample(rate="slow", rule="one word")
    rubric = ("gives the right answer", "is one word")
    assert listener.utility(asked, "8.") - listener.utility(curt, "8.") == pytest.approx(0.7 + 0.5)
    assert listener.utility(curt, "8.", rubric) - listener.utility(curt, "8.") == pytest.approx(0.8 + 0.5)


def test_comparisons_are_noisy_neutral_to_position_and_repeatable():
    listener, speaker = Listener(7), sample()
    warm, bare = "You sound in a hurry, so quickly: it is 8.", "8."
    levels = [listener.compare(speaker, warm, bare, index=i) for i in range(400)]
    assert all(listener.compare(speaker, bare, warm, index=i) == -levels[i] for i in range(50))
    assert levels == [Listener(7).compare(speaker, warm, bare, index=i) for i in range(400)]
    counts = Counter(levels)
    assert set(counts) >= {0, 1, 2}
    assert 0.75 < np.mean([level > 0 for level in levels]) < 0.99
    close = [listener.compare(speaker, "It is 8.", "Sure, it is 8.", index=i) for i in range(400)]
    assert abs(np.mean(close)) < 0.15  # of equal utility: no side is favoured
    assert listener.compare(speaker, warm, warm) == 0
    assert levels != [Listener(8).compare(speaker, warm, bare, index=i) for i in range(400)]
    assert [listener.true_level(speaker, *pair) for pair in ((warm, bare), (bare, warm), (bare, "9."))] == [
        1,
        -1,
        2,
    ]
    wrong = "You sound in a hurry, so quickly: it is 9."
    sure = [listener.compare(speaker, warm, wrong, index=i) for i in range(200)]
    assert np.mean([level == 2 for level in sure]) > 0.9
