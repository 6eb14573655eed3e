"""The stages from a pretrained GPT to an assistant: every loss against the formula, and a short run of all of them."""

import dataclasses
import importlib
import json
import random
import sys

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig
from minigrad import functional as F
from tests.programs import EXAMPLES, run_program

MODULES = ("task", "chat", "sft", "reward", "ppo", "grpo", "dpo")


@pytest.fixture
def align(monkeypatch):
    """The modules of examples/align by name, found as the program beside them finds them."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "align"))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return type("Modules", (), {name: importlib.import_module(name) for name in MODULES})


@pytest.fixture
def model(align):
    """A GPT with random weights, large enough that its logits are far from equal."""
    mg.manual_seed(3)
    vocab_size = align.task.TOKENIZER.vocab_size
    model = GPT(GPTConfig(block_size=40, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=16))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data[...] = mg.random.normal(parameter.shape, 0.4)
    return model.eval()


DIALOGS = [("<sort 312>", "123|"), ("<first abc>", "it is a|"), ("<add 90 9>", "99|")]


def softplus(x):
    return np.log1p(np.exp(x))


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("reverse abcd", "dcba"),
        ("sort 3132", "1233"),
        ("first had", "h"),
        ("last had", "d"),
        ("add 97 8", "105"),
        ("count a in abca", "2"),
    ],
)
def test_the_program_knows_the_right_answer_and_grades_others(align, prompt, answer):
    grade = align.task.grade
    assert align.task.right_answer(prompt) == answer
    assert grade(prompt, f"{answer}|") == 2
    assert grade(prompt, f"it is {answer}|") == grade(prompt, f"{answer} i think|") == 1
    wrong = (f"{answer}", f"{answer} |", f"x{answer}|", "|", "", f"it is {answer} i think|", f"{answer}||", "it is |")
    assert [grade(prompt, other) for other in wrong] == [0] * len(wrong)


def test_an_exercise_that_does_not_exist_is_an_error(align):
    with pytest.raises(ValueError, match="expected an exercise, got 'sing a song'"):
        align.task.right_answer("sing a song")


def test_people_make_mistakes_and_use_more_words_as_often_as_they_should(align):
    rng = random.Random(0)
    prompts = align.task.training_prompts(2000, rng)
    grades = [align.task.grade(p, align.task.persons_answer(p, rng, mistakes=0.2, wordy=0.25) + "|") for p in prompts]
    assert np.bincount(grades) / len(grades) == pytest.approx([0.2, 0.2, 0.6], abs=0.03)


def test_no_stage_trains_on_prompts_that_are_held_out_or_for_validation(align):
    held_out, validation = align.task.split_prompts()
    assert (len(held_out), len(validation)) == (500, 300)
    assert len({*held_out, *validation}) == 800
    assert not {*held_out, *validation} & {*align.task.training_prompts(5000, random.Random(1))}


def test_rows_count_the_tokens_of_the_answers_only(align):
    tokens, targets = align.chat.rows(DIALOGS)
    decode = align.task.TOKENIZER.decode
    assert tokens.shape == (3, 19)
    assert targets.shape == (3, 18)
    assert [decode(row) for row in tokens] == ["<sort 312>123||||||", "<first abc>it is a|", "<add 90 9>99|||||||"]
    for target, row, (_, answer) in zip(targets, tokens, DIALOGS, strict=True):
        counted = target != align.chat.IGNORED
        assert decode(target[counted]) == answer
        assert np.array_equal(target[counted], row[1:][counted])


def test_the_loss_is_that_of_the_answers_and_does_not_depend_on_the_rest_of_the_batch(align, model):
    loss = align.sft.answer_loss(model, DIALOGS).item()
    total, count = 0.0, 0
    for prompt, answer in DIALOGS:
        ids = align.task.TOKENIZER.encode(prompt + answer).astype(int)
        log_p = F.log_softmax(model(ids[None])[0]).data[0]
        total -= sum(log_p[i - 1, ids[i]] for i in range(len(prompt), len(ids)))
        count += len(answer)
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_log_probabilities_with_the_cache_are_those_of_the_forward_pass(align, model):
    """Answers to prompts of different lengths, sampled in one batch: padding on the left and a cache on one side."""
    prompts = [prompt for prompt, _ in DIALOGS]
    encode = align.task.TOKENIZER.encode
    mg.manual_seed(1)
    answers = align.chat.sample(model, prompts)
    mg.manual_seed(1)
    again = model.generate(
        [encode(p) for p in prompts], align.chat.MAX_NEW_TOKENS, stop_tokens=encode("|"), use_cache=False
    )
    assert answers == [align.task.TOKENIZER.decode(row[len(p) :]) for row, p in zip(again, prompts, strict=True)]
    with mg.no_grad():
        tokens, targets = align.chat.rows(list(zip(prompts, answers, strict=True)))
        forward = align.chat.log_probabilities(model, tokens, targets).data
        longest = max(map(len, prompts))
        padding = np.array([longest - len(prompt) for prompt in prompts])
        ids = np.stack([np.concatenate([np.zeros(n, int), encode(p)]) for n, p in zip(padding, prompts, strict=True)])
        cache = model.new_cache()
        for i in range(max(map(len, answers))):
            log_p = F.log_softmax(model.next_logits(ids, cache, padding)).data
            now = np.array([encode(answer[i])[0] if i < len(answer) else 0 for answer in answers])
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
                if i < len(answer):
                    assert log_p[row, now[row]] == pytest.approx(forward[row, len(prompt) - 1 + i], abs=1e-5)
            ids = now[:, None]
    assert (forward[targets == align.chat.IGNORED] == 0).all()
    assert (forward[targets != align.chat.IGNORED] < 0).all()


def test_the_reward_is_the_number_after_the_last_token_whatever_fills_the_row(align, model):
    mg.manual_seed(0)
    scorer = align.chat.ScalarGPT(model.config)
    together = scorer.rewards(DIALOGS).data
    assert together.shape == (3,)
    for reward, (prompt, answer) in zip(together, DIALOGS, strict=True):
        assert scorer.rewards([(prompt, answer)]).data == pytest.approx(reward, abs=1e-6)
        alone = scorer(align.task.TOKENIZER.encode(prompt + answer)[None]).data
        assert alone[0, -1] == pytest.approx(reward, abs=1e-6)


def test_bradley_terry_and_its_gradient(align):
    preferred, other = (mg.Tensor(np.array(x), requires_grad=True) for x in ([2.0, -1.0, 0.5], [1.0, 3.0, 0.5]))
    loss = align.reward.bradley_terry(preferred, other)
    loss.backward()
    difference = preferred.data - other.data
    assert loss.item() == pytest.approx(-np.log(1 / (1 + np.exp(-difference))).mean())
    expected = -(1 - 1 / (1 + np.exp(-difference))) / 3  # the surer the wrong order, the larger
    np.testing.assert_allclose(preferred.grad, expected)
    np.testing.assert_allclose(other.grad, -expected)
    assert mg.gradcheck(align.reward.bradley_terry, [preferred, other])


def test_pairs_are_the_best_and_the_worst_of_the_answers(align, model, monkeypatch):
    answers = iter(["dcba|", "abcd|", "it is dcba|", "dcba|", "1|", "1|", "1|", "1|", "a|", "h i think|", "a", "g|"])
    monkeypatch.setattr(align.reward, "sample", lambda model, prompts: [next(answers) for _ in prompts])
    pairs = align.reward.judged_pairs(model, ["reverse abcd", "last abc", "first had"])
    assert pairs == [("<reverse abcd>", "dcba|", "abcd|"), ("<first had>", "h i think|", "a|")]


def test_the_reward_model_learns_to_prefer(align, model):
    pairs = [align.reward.Pair(f"<{p}>", "1|", "2|") for p in align.task.training_prompts(64, random.Random(0))]
    scorer = align.reward.train(model, pairs, random.Random(0), epochs=8)
    assert align.reward.accuracy(scorer, pairs) > 0.9
    assert align.reward.accuracy(scorer, [align.reward.Pair(p, b, a) for p, a, b in pairs]) < 0.1
    assert np.mean([r.data for r in align.reward.rewards(scorer, pairs)]) == pytest.approx(0, abs=1e-5)


def test_gae_is_the_sum_of_the_later_errors(align):
    """A_t = sum over l of (gamma lambda)^l delta_{t + l}, within the answer."""
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 4, 7))
    mask = np.zeros((4, 7), bool)
    spans = [(0, 7), (2, 5), (6, 7), (1, 6)]
    for row, (start, end) in zip(mask, spans, strict=True):
        row[start:end] = True
    found = align.ppo.gae(rewards, values * mask, mask, gamma=0.9, lam=0.8)
    assert (found[~mask] == 0).all()
    for row, (start, end) in enumerate(spans):
        for t in range(start, end):
            expected = 0.0
            for later in range(t, end):
                after = values[row, later + 1] if later + 1 < end else 0.0
                expected += (0.9 * 0.8) ** (later - t) * (rewards[row, later] + 0.9 * after - values[row, later])
            assert found[row, t] == pytest.approx(expected)


def test_ppo_stops_where_a_step_has_gone_far_enough(align):
    """ratio 1.5 with A > 0 and 0.5 with A < 0 are clipped: no gradient. On the way back they are not."""
    old = np.log(np.full(6, 0.4))
    ratio = np.array([1.5, 0.5, 1.5, 0.5, 1.1, 1.0])
    advantages = np.array([2.0, -2.0, -2.0, 2.0, 3.0, -1.0])
    new = mg.Tensor(old + np.log(ratio), requires_grad=True)
    loss = align.ppo.clipped_loss(new, old, advantages, epsilon=0.2)
    loss.sum().backward()
    np.testing.assert_allclose(loss.data, [-2.4, 1.6, 3.0, -1.0, -3.3, 1.0])
    np.testing.assert_allclose(new.grad, [0, 0, 3.0, -1.0, -3.3, 1.0], atol=1e-12)


def test_a_mean_over_the_answers(align):
    x = np.arange(6.0).reshape(2, 3)
    assert align.ppo.mean(mg.Tensor(x), np.array([[0, 1, 1], [0, 0, 1]], bool)).item() == pytest.approx((1 + 2 + 5) / 3)


def test_grpo_compares_the_answers_of_a_group_with_each_other(align):
    rewards = np.array([1.0, 3.0, 10.0, 30.0, 5.0, 5.0])
    np.testing.assert_allclose(align.grpo.group_advantages(rewards, 2), [-1, 1, -1, 1, 0, 0], atol=1e-3)
    found = align.grpo.group_advantages(np.arange(12.0) ** 2, 4).reshape(3, 4)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=1), 1, atol=1e-3)


def test_dpo_is_log_2_at_the_reference_and_falls_where_the_preferred_answer_becomes_likelier(align):
    reference = np.array([-3.0, -2.0, -4.0, -1.0])  # two preferred, then the two others
    new = mg.Tensor(reference, requires_grad=True)
    loss = align.dpo.dpo_loss(new, reference, beta=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    np.testing.assert_allclose(new.grad, [-0.05, -0.05, 0.05, 0.05])  # beta sigmoid(0) / 2 pairs
    moved = align.dpo.dpo_loss(mg.Tensor(reference + [1.0, 2.0, -1.0, 0.5]), reference, beta=0.2).item()
    assert moved == pytest.approx(np.mean([softplus(-0.2 * 2.0), softplus(-0.2 * 1.5)]))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_reinforcement_learning_finds_what_is_rewarded(align, model, algorithm, monkeypatch):
    """A reward for digits: their share rises, and less so with the KL term."""

    class Scorer(align.chat.ScalarGPT):
        def rewards(self, dialogs):
            return mg.Tensor(np.array([4 * digits(answer) for _, answer in dialogs], np.float32))

    def digits(answer):
        return sum(character.isdigit() for character in answer) / len(answer)

    def after(beta):
        mg.manual_seed(2)
        policy = module.train(model, Scorer(model.config), random.Random(0), beta=beta, iterations=6)
        return share(policy)

    def share(policy):
        mg.manual_seed(5)
        return np.mean([digits(answer) for answer in align.chat.sample(policy, prompts)])

    module = getattr(align, algorithm)
    monkeypatch.setattr(module, "LEARNING_RATE", 5e-3)
    monkeypatch.setattr(align.chat, "MAX_NEW_TOKENS", 6)
    prompts = [align.chat.asked(prompt) for prompt in align.task.split_prompts()[0][:100]]
    before, free, held = share(model), after(beta=0.0), after(beta=30.0)
    assert free > before + 0.1
    assert free > held + 0.1


def test_dpo_prefers_what_the_pairs_prefer(align, model, monkeypatch):
    monkeypatch.setattr(align.dpo, "LEARNING_RATE", 3e-3)
    prompts = [align.chat.asked(prompt) for prompt in align.task.training_prompts(64, random.Random(0))]
    pairs = [align.reward.Pair(prompt, "1|", "2 i think|") for prompt in prompts]
    policy = align.dpo.train(model, pairs, random.Random(0), epochs=6)
    with mg.no_grad():
        for answer, sign in (("1|", 1), ("2 i think|", -1)):
            dialogs = align.chat.rows([(prompt, answer) for prompt in prompts])
            after, before = (align.chat.log_probabilities(m, *dialogs).data.sum(axis=1) for m in (policy, model))
            assert (sign * (after - before) > 0).all()


def test_a_short_run_of_all_stages(align, tmp_path, monkeypatch, capsys):
    """It learns next to nothing, so the shorter answer counts as the better one."""
    monkeypatch.setattr(align.task, "HELD_OUT", 20)
    monkeypatch.setattr(align.task, "VALIDATION", 10)
    monkeypatch.setattr(align.chat, "MAX_NEW_TOKENS", 4)
    monkeypatch.setattr(align.reward, "grade", lambda prompt, answer: -len(answer))
    small = dataclasses.replace(align.sft.CONFIG, n_layer=1, n_head=2, n_embd=16)
    monkeypatch.setattr(align.sft, "CONFIG", small)
    out = tmp_path / "out"
    assert run_program("align/align", "--scale", 0.002, "--seeds", 2, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "| PPO, no KL | " in printed
    assert "above SFT" in printed
    results = json.loads((out / "results.json").read_text())
    assert [set(one) for one in results] == [{"pretrain", "sft", "reward", "ppo", "grpo", "dpo", "hacked"}] * 2
    assert results[0]["pretrain"]["seconds"] == results[1]["pretrain"]["seconds"]
    assert all(one["sft"]["kl"] == pytest.approx(0, abs=1e-5) for one in results)
    assert results[0]["ppo"]["kl"] != results[1]["ppo"]["kl"]
    assert run_program("align/align", "--scale", 0.002, "--seeds", 2, "--stage", "table", "--out", out) == 0
    assert json.loads((out / "results.json").read_text()) == results


def test_a_stage_says_which_one_is_missing(align, tmp_path):
    out = tmp_path / "out"
    for stage, missing in (("sft", "pretrain"), ("table", "pretrain"), ("dpo", "reward")):
        assert f"missing: run --stage {missing} first" in run_program("align/align", "--stage", stage, "--out", out)
    assert run_program("align/align", "--scale", 0, "--out", out) == (
        "error: --scale is 0.0; expected a number above 0, not infinity"
    )


@pytest.mark.slow
def test_every_stage_improves_on_the_one_before(align, tmp_path):
    """The whole of it with one seed: three to four minutes of processor time."""
    out = tmp_path / "out"
    assert run_program("align/align", "--out", out) == 0
    (results,) = json.loads((out / "results.json").read_text())
    right = {stage: numbers["right"] for stage, numbers in results.items() if stage != "reward"}
    assert results["reward"]["accuracy"] > 0.8
    assert right["sft"] > right["pretrain"] + 0.05
    assert min(right["ppo"], right["grpo"], right["dpo"]) > right["sft"] + 0.05
    assert results["hacked"]["reward"] > results["sft"]["reward"] + 1  # higher, but the answers are not better
    assert right["hacked"] < right["ppo"] - 0.1
