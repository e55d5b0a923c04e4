"""Formats of judgements: pairs, labels, rankings, scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmfactory.data.record.conversations import exchange, replies, transcript
from llmfactory.data.record.messages import assistant, checked, conversation, in_order, message, user, with_system
from llmfactory.data.record.record import BadRow, Format, Kind, Record, Row, number_of, text_of

Messages = list[dict[str, Any]]


def pair(row: Row, prompt: Messages, chosen: Messages, rejected: Messages, **extra: Any) -> list[Record]:
    """The two sides behind their prompt."""
    for side, name in ((chosen, "chosen"), (rejected, "rejected")):
        if not side or side[-1]["role"] != "assistant":
            raise BadRow("no answer", f"the {name} side does not end with one")
        in_order([*prompt, *side])
    return [_with(row, {"prompt": prompt, "chosen": chosen, "rejected": rejected, **margin(row), **extra})]


def margin(row: Row) -> Record:
    """By how much the chosen answer is better, where the file has it."""
    for better, worse in (
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
    ):
        if row.get(better) is not None and row.get(worse) is not None:
            return {"margin": number_of(row[better], better) - number_of(row[worse], worse)}
    return {} if row.get("margin") is None else {"margin": number_of(row["margin"], "margin")}


def shared(one: Messages, other: Messages) -> int:
    """How many messages two conversations begin with alike; their last ones are not among them."""
    same = 0
    while same < min(len(one), len(other)) - 1 and one[same] == other[same]:
        same += 1
    while same and one[same - 1]["role"] == "assistant" and one[same]["role"] != "user":
        same -= 1
    return same


def _split(row: Row, chosen: Messages, rejected: Messages) -> list[Record]:
    same = shared(chosen, rejected)
    if not same:
        raise BadRow("sides without a common prompt", "their first messages differ")
    return pair(row, chosen[:same], chosen[same:], rejected[same:])


def _transcripts(row: Row) -> list[Record]:
    return _split(row, transcript(row["chosen"]), transcript(row["rejected"]))


def _listed(chosen: str, rejected: str) -> Any:
    def read(row: Row) -> list[Record]:
        sides = [[message(one, []) for one in row[name]] for name in (chosen, rejected)]
        if isinstance(row.get("prompt"), list):  # then the sides may hold the answers alone
            prompt = [message(one, []) for one in row["prompt"]]
            if sides[0][: len(prompt)] != prompt:
                return pair(row, prompt, *sides)
        elif len(sides[0]) == len(sides[1]) == 1 and isinstance(row.get("prompt"), str):
            return pair(row, [user(text_of(row, "prompt"))], *sides)
        return _split(row, *sides)

    return read


def _behind(row: Row) -> list[Record]:
    """A list of messages, and the two that may follow it."""
    before = conversation(row, row["messages"] if row.get("conversations") is None else row["conversations"])
    sides = [[message(row[name], [])] for name in ("chosen", "rejected")]
    return pair(row, before["messages"], *sides, **{key: before[key] for key in ("tools", "images") if key in before})


def _texts(row: Row) -> list[Record]:
    return pair(row, question(row), [assistant(text_of(row, "chosen"))], [assistant(text_of(row, "rejected"))])


def question(row: Row) -> Messages:
    """What is asked, by whichever name a file has it."""
    if isinstance(row.get("prompt"), list):
        return [message(one, []) for one in row["prompt"]]
    name = next((name for name in ("prompt", "instruction", "question", "query") if row.get(name) is not None), None)
    if name is None:
        raise BadRow("no prompt", f"none of prompt, instruction, question, query among {sorted(row)[:10]}")
    if isinstance(row[name], str) and row[name].lstrip().startswith("Human:"):
        said = row[name].rstrip().removesuffix("Assistant:").rstrip()
        return transcript(said)
    found = exchange({**row, "chosen": "x"}, name, "chosen", "input" if name == "instruction" else None)[0]["messages"]
    return list(found[:-1])


def _comparison(row: Row) -> list[Record]:
    """Summaries that people compared (Stiennon et al. 2020): a post or an article, two summaries, the number of the better one."""
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    post = info.get("post") or info.get("article") if isinstance(info, dict) else None
    pair_of = isinstance(summaries, list) and len(summaries) == 2 and all(isinstance(one, dict) for one in summaries)
    if not isinstance(post, str) or not pair_of or choice not in (0, 1):
        raise BadRow("a comparison that is none", "it needs info.post or info.article, two summaries and a choice of 0 or 1")
    title = info.get("title")
    asked = user((f"{title}\n\n" if isinstance(title, str) and title else "") + f"{post.strip()}\n\nTL;DR:")
    sides = [[assistant(text_of(one, "text").strip())] for one in (summaries[choice], summaries[1 - choice])]
    return pair(row, [asked], *sides)


def _judged(row: Row) -> list[Record]:
    if not isinstance(row["label"], bool):
        raise BadRow("a label that is neither true nor false", repr(row["label"]))
    if isinstance(row.get("messages"), list):
        before = conversation(row, row["messages"])
        prompt, answer = before["messages"][:-1], before["messages"][-1:]
    elif isinstance(row.get("completion"), list):
        prompt, answer = question(row), [message(one, []) for one in row["completion"]]
    else:
        name = next((name for name in ("completion", "response", "output", "answer") if row.get(name) is not None), "completion")
        prompt, answer = question(row), [assistant(text_of(row, name))]
    return [_with(row, {"prompt": prompt, "answer": _answer(prompt, answer), "label": row["label"]})]


def _answer(prompt: Messages, answer: Messages) -> Messages:
    if not answer or answer[-1]["role"] != "assistant":
        raise BadRow("no answer", "the last message is not the assistant's")
    in_order([*prompt, *answer])
    return answer


def _ranking(field: str) -> Any:
    def read(row: Row) -> list[Record]:
        answers = row[field]
        if not isinstance(answers, list) or len(answers) < 2:
            raise BadRow("a ranking of less than two answers")
        scores = row.get("scores")
        if all(isinstance(one, dict) for one in answers):
            scores = scores or [
                next((one[key] for key in ("score", "overall_score", "rating") if key in one), None) for one in answers
            ]
            answers = [next((one[key] for key in ("text", "response", "content") if key in one), None) for one in answers]
        return [ranked(row, question(row), [text_of({field: one}, field) for one in answers], scores)]

    return read


def ranked(row: Row, prompt: Messages, answers: Sequence[str], scores: Any = None) -> Record:
    """By scores where there are any, otherwise by the order in which they stand or by `ranks` (0 or 1 the best)."""
    ranks = row.get("ranks")
    if not isinstance(scores, (list, type(None))) or not isinstance(ranks, (list, type(None))):
        raise BadRow("scores that are too few or too many", "they are no list")
    known = any(score is not None for score in scores or ())
    numbers: Sequence[Any] = (scores or ()) if known else [-number_of(rank, "a rank") for rank in ranks or range(len(answers))]
    if len(numbers) != len(answers):
        raise BadRow("scores that are too few or too many", f"{len(numbers)} for {len(answers)} answers")
    values = [number_of(score, "a score") for score in numbers]
    order = sorted(range(len(answers)), key=lambda place: -values[place])
    found = {"prompt": prompt, "answers": [_answer(prompt, [assistant(answers[place])]) for place in order]}
    return _with(row, {**found, **({"scores": [values[place] for place in order]} if known else {})})


def _tree_ranks(row: Row) -> list[Record]:
    """OpenAssistant: the replies to each question that people ranked."""
    found: list[Record] = []

    def visit(node: Any, before: Messages) -> None:
        path = [*before, (assistant if node.get("role") == "assistant" else user)(text_of(node, "text"))]
        judged = [one for one in replies(node) if one.get("role") == "assistant" and isinstance(one.get("rank"), int)]
        if len(judged) > 1:
            found.append(ranked({"ranks": [one["rank"] for one in judged]}, path, [text_of(one, "text") for one in judged]))
        for one in replies(node):
            visit(one, path)

    visit(row["prompt"], [])
    if not found:
        raise BadRow("a tree without ranked answers")
    return found


def _scored(row: Row) -> list[Record]:
    name = next(name for name in ANSWERS if isinstance(row.get(name), str))
    score = number_of(next(row[key] for key in SCORES if row.get(key) is not None), "the score")
    prompt = question(row)
    return [_with(row, {"prompt": prompt, "answer": _answer(prompt, [assistant(text_of(row, name))]), "score": score})]


def _steps(row: Row) -> list[Record]:
    """Each step of a solution with its score (Lightman et al. 2023; labels of true and false count 1 and 0)."""
    steps, scores = row["steps"], next((row[key] for key in ("scores", "labels", "ratings", "rewards") if key in row), None)
    if isinstance(steps, list) and steps and all(isinstance(one, dict) for one in steps):
        scores = [next((one[key] for key in ("score", "rating", "label", "reward") if key in one), None) for one in steps]
        steps = [one.get("text") for one in steps]
    if not isinstance(steps, list) or not isinstance(scores, list) or not steps or len(steps) != len(scores):
        raise BadRow("steps without a score each")
    prompt = question(row)
    in_order([*prompt, assistant("x")])
    values = [number_of(int(score) if isinstance(score, bool) else score, "a score") for score in scores]
    return [_with(row, {"prompt": prompt, "steps": [text_of({"steps": one}, "steps") for one in steps], "scores": values})]


SCORES = ("score", "reward", "rating")
ANSWERS = ("response", "completion", "answer", "output")


def _with(row: Row, record: Record) -> Record:
    """A record whose prompt begins with the row's system message."""
    if isinstance(row.get("system"), str) and record["prompt"] and record["prompt"][0]["role"] != "system":
        record = {**record, "prompt": with_system(row["system"], record["prompt"])}
    extra = checked({"messages": record["prompt"], "images": record.get("images")})
    return {**record, "prompt": extra["messages"]}


def _is(kind: type, *fields: str) -> Any:
    return lambda row: all(isinstance(row[field], kind) for field in fields)


def _has(*names: str) -> Any:
    return lambda row: any(row.get(name) is not None for name in names)


def _said(row: Row) -> bool:
    return any(isinstance(row.get(name), str) for name in ANSWERS)


def _is_transcript(row: Row) -> bool:
    return all(isinstance(row[side], str) and row[side].lstrip().startswith("Human:") for side in ("chosen", "rejected"))


FORMATS = (
    Format("hh_rlhf", Kind.pair, ("chosen", "rejected"), _transcripts, _is_transcript),
    Format("message_pair", Kind.pair, ("chosen", "rejected"), _listed("chosen", "rejected"), _is(list, "chosen", "rejected")),
    Format(
        "messages_pair",
        Kind.pair,
        ("chosen_messages", "rejected_messages"),
        _listed("chosen_messages", "rejected_messages"),
        _is(list, "chosen_messages", "rejected_messages"),
    ),
    Format("sharegpt_pair", Kind.pair, ("chosen", "rejected"), _behind, lambda row: _has("conversations", "messages")(row)),
    Format("text_pair", Kind.pair, ("chosen", "rejected"), _texts, _is(str, "chosen", "rejected")),
    Format("comparison", Kind.pair, ("info", "summaries", "choice"), _comparison),
    Format("judged", Kind.judged, ("label",), _judged, _has("messages", "completion", "response")),
    Format("completions", Kind.ranking, ("completions",), _ranking("completions")),
    Format("responses", Kind.ranking, ("responses",), _ranking("responses")),
    Format("answers", Kind.ranking, ("answers",), _ranking("answers"), lambda row: _has("scores", "ranks")(row)),
    Format("ranked_tree", Kind.ranking, ("prompt",), _tree_ranks, _is(dict, "prompt")),
    Format("steps", Kind.scored, ("steps",), _steps),
    Format("scored", Kind.scored, (), _scored, lambda row: _has(*SCORES)(row) and _said(row)),
)
