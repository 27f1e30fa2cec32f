"""A comparison as a page: Markdown or HTML, the replies side by side.

The rule: a page stands alone and shows text as text: no script, nothing fetched, no path of this machine, and nothing a
model says is taken for markup.
"""

from collections.abc import Sequence
from html import escape
from pathlib import PurePath

from macft.chat.panes import Turn
from macft.measure.comparison import Comparison, Exchange, VoiceFigures
from macft.measure.page import table, write_page

_SPECIAL = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]()#+!|~$"} | {"<": "&lt;", "&": "&amp;"})


def write_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown, a table a prompt."""
    figures = comparison.figures()
    parts = [f"# {_title(comparison)}", "", _said(comparison), "", *_markdown_table(_figure_rows(figures))]
    if rows := _likelihood_rows(figures):
        parts += ["", "Mean log-probability a token of whose answers (rows) under which voice (columns), nats:", ""]
        parts += _markdown_table(rows)
    for number, exchange in enumerate(comparison.exchanges, start=1):
        parts += ["", f"## {number}", "", *(_quoted(turn) for turn in exchange.turns), ""]
        names = [voice.name for voice in comparison.voices]
        parts += _markdown_table([names, [reply.text for reply in exchange.replies], _small(exchange)])
    return "\n".join(parts) + "\n"


def write_html(comparison: Comparison) -> str:
    """Return the comparison as one HTML page."""
    figures, title = comparison.figures(), escape(_title(comparison))
    parts = [f"<h1>{title}</h1>", f"<p>{escape(_said(comparison))}</p>", table(_figure_rows(figures))]
    if rows := _likelihood_rows(figures):
        parts += ["<p>Mean log-probability a token of whose answers (rows) under which voice (columns), nats:</p>"]
        parts += [table(rows)]
    for number, exchange in enumerate(comparison.exchanges, start=1):
        asked = "".join(
            f'<p class="text"><b>{escape(role)}</b> {escape(content)}</p>' for role, content in exchange.turns
        )
        replies = "".join(
            f'<div><h3>{escape(voice.name)}</h3><div class="text">{escape(reply.text)}</div>'
            f'<p class="small">{escape(small)}</p></div>'
            for voice, reply, small in zip(comparison.voices, exchange.replies, _small(exchange), strict=True)
        )
        parts.append(f'<section><h2>{number}</h2>{asked}<div class="voices">{replies}</div></section>')
    return write_page(_title(comparison), parts)


def _title(comparison: Comparison) -> str:
    return " · ".join(voice.name for voice in comparison.voices)


def _said(comparison: Comparison) -> str:
    sampling = comparison.sampling
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, seed {sampling.seed}"
    return f"{len(comparison.exchanges)} prompts, {how}, at most {sampling.max_tokens} tokens."


def _figure_rows(figures: Sequence[VoiceFigures]) -> list[list[str]]:
    has_kl = any(one.kl is not None for one in figures)
    head = ["voice", "model", "tokens", "tokens/s", "s a reply", "cut", *(["KL a token"] if has_kl else [])]
    return [
        head,
        *(
            [
                one.voice.name,
                PurePath(one.voice.model_path).name,
                f"{one.tokens:,}",
                f"{one.tokens_per_second:.1f}",
                f"{one.seconds:.2f}",
                str(one.cut),
                *(["–" if one.kl is None else f"{one.kl:.3f}"] if has_kl else []),
            ]
            for one in figures
        ),
    ]


def _likelihood_rows(figures: Sequence[VoiceFigures]) -> list[list[str]]:
    if not all(one.logprobs for one in figures):
        return []
    head = ["answers of", *(one.voice.name for one in figures)]
    return [
        head,
        *([own.voice.name, *(f"{one.logprobs[place]:.3f}" for one in figures)] for place, own in enumerate(figures)),
    ]


def _small(exchange: Exchange) -> list[str]:
    """Say under each reply how long it was, how fast, and what it was worth to its voice."""
    lines = []
    for place, reply in enumerate(exchange.replies):
        said = f"{len(reply.token_ids)} tokens · {reply.tokens_per_second:.1f} tokens/s · {reply.seconds:.2f} s"
        if exchange.likelihoods:
            said += f" · {exchange.likelihoods[place][place].mean:.3f} nats a token"
        lines.append(said + (" · cut" if reply.finish_reason == "length" else ""))
    return lines


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_marked, row)) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _marked(text: str) -> str:
    """Return a text as Markdown that shows it as it is, in one line."""
    return text.translate(_SPECIAL).replace("\n", "<br>") or " "


def _quoted(turn: Turn) -> str:
    role, content = turn
    return f"> **{role}** " + content.translate(_SPECIAL).replace("\n", "\n> ") + "\n"
