"""The contact sheet of random samples: one page to open in a browser, or one picture."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template

from PIL import Image, ImageDraw, ImageFont

from mmlab.data.card import Card, Clip

PAGE_LIMIT = 16_000_000
"""Bytes of a page at most, about: sounds and then pictures beyond it are left out."""
_TEMPLATE = Path(__file__).with_suffix(".html")
_CELL, _BOX, _LINES, _MARGIN = 240, 180, 4, 16
_INK, _SOFT, _LINE, _GROUND, _ACCENT, _BAD = "#1d2329", "#66707b", "#dfe3e8", "#f6f7f9", "#2f6fb7", "#b3261e"


def check_sheet(path: Path) -> None:
    """Raise ValueError for a name that is neither a page's nor a picture's."""
    if path.suffix.lower() not in (".html", ".png"):
        raise ValueError(f"--sheet {path}: name it .html (a page with sounds to play) or .png (one picture)")


def write_sheet(path: Path, cards: Sequence[Card], *, title: str, facts: Sequence[str]) -> None:
    """Write the sheet, as its name says: a page (`.html`) or a picture (`.png`).

    Args:
        path: Where to.
        cards: What it shows.
        title: Its heading.
        facts: Lines below the heading.
    """
    check_sheet(path)
    if path.suffix.lower() == ".html":
        path.write_text(sheet_page(cards, title=title, facts=facts), encoding="utf-8")
    else:
        sheet_picture(cards, title=title, facts=facts).save(path)


def sheet_page(cards: Sequence[Card], *, title: str, facts: Sequence[str], limit: int = PAGE_LIMIT) -> str:
    """The sheet as a page that needs no other file."""
    room = limit
    parts = []
    for card in cards:
        part = _card(card, room)
        room -= len(part)
        parts.append(part)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        facts="".join(f"<p>{html.escape(fact)}</p>" for fact in facts),
        cards="\n".join(parts),
    )


def _card(card: Card, room: int) -> str:
    picture = ""
    notes = list(card.notes)
    if card.picture is not None:
        buffer = io.BytesIO()
        card.picture.save(buffer, "JPEG", quality=82)
        picture = f'<img alt="" src="{_inlined("image/jpeg", buffer.getvalue())}">'
        if len(picture) > room:
            picture = ""
            notes.append("picture left out: the page is full")
    room -= len(picture)
    sounds = []
    for clip in card.clips:
        sounds.append(_sound(clip, room))
        room -= len(sounds[-1])
    about = [
        *(f'<span class="label">{html.escape(label)}</span>' for label in card.labels),
        *(f"<p>{html.escape(text)}</p>" for text in card.captions),
        *sounds,
        *(f'<div class="fault">{html.escape(fault)}</div>' for fault in card.faults),
        f'<div class="note">{html.escape(" · ".join(notes))}</div>' if notes else "",
        f'<div class="key">{html.escape(card.key)}</div>',
    ]
    return f'<div class="card">{picture}<div class="about">{"".join(about)}</div></div>'


def _sound(clip: Clip, room: int) -> str:
    bars = "".join(
        f'<rect x="{number}" y="{20 - 20 * peak:.1f}" width=".7" height="{max(40 * peak, 0.6):.1f}"/>'
        for number, peak in enumerate(clip.peaks.tolist())
    )
    drawing = f'<svg viewBox="0 0 {len(clip.peaks)} 40" preserveAspectRatio="none">{bars}</svg>'
    kind = clip.extension.rpartition(".")[2].replace("mp3", "mpeg")
    player = f'<audio controls preload="none" src="{_inlined(f"audio/{kind}", clip.content)}"></audio>'
    if len(player) > room:
        player = "<div>not playable here: the page is full</div>"
    return f'<div class="sound">{html.escape(clip.extension)}, {clip.seconds:.1f} s{drawing}{player}</div>'


def _inlined(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def sheet_picture(cards: Sequence[Card], *, title: str, facts: Sequence[str]) -> Image.Image:
    """The sheet as one picture; sounds are drawn, not played."""
    columns = max(1, min(6, math.ceil(math.sqrt(len(cards)))))
    rows = math.ceil(len(cards) / columns)
    top = 2 * _MARGIN + 30 + 20 * len(facts)
    height = _BOX + 20 * _LINES + 34
    width = max(columns, 2) * (_CELL + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, top + rows * (height + _MARGIN)), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _fitted(title, _font(22), width - 2 * _MARGIN), _INK, _font(22))
    for number, fact in enumerate(facts):
        line = _fitted(fact, _font(14), width - 2 * _MARGIN)
        draw.text((_MARGIN, _MARGIN + 32 + 20 * number), line, _SOFT, _font(14))
    for number, card in enumerate(cards):
        row, column = divmod(number, columns)
        left, upper = _MARGIN + column * (_CELL + _MARGIN), top + row * (height + _MARGIN)
        draw.rounded_rectangle((left, upper, left + _CELL, upper + height), 8, "white", _LINE)
        _draw_card(sheet, draw, card, left + 8, upper + 8)
    return sheet


def _draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, card: Card, left: int, top: int) -> None:
    inner, box = _CELL - 16, _BOX - 8
    bars = 44 if card.clips else 0
    if card.picture is not None:
        small = card.picture.copy()
        small.thumbnail((inner, box - bars))
        sheet.paste(small, (left + (inner - small.width) // 2, top + (box - bars - small.height) // 2))
    for clip in card.clips[:1]:
        middle, tall = (top + box - 20, 18) if card.picture is not None else (top + box // 2, box // 3)
        step = inner // len(clip.peaks)
        first = left + (inner - step * len(clip.peaks)) // 2
        for number, peak in enumerate(clip.peaks.tolist()):
            x, reach = first + number * step, round(tall * peak)
            draw.rectangle((x, middle - reach, x + step - 2, middle + reach), _ACCENT)
    lines = [(text, _BAD) for text in card.faults]
    lines += [(text, _ACCENT) for text in card.labels]
    lines += [(text, _INK) for text in card.captions[:1]]
    lines += [(f"{clip.extension}, {clip.seconds:.1f} s", _SOFT) for clip in card.clips[:1]]
    lines += [(" · ".join(card.notes), _SOFT)] if card.notes else []
    wrapped = [(line, colour) for text, colour in lines for line in _wrapped(text, _font(14), inner)]
    for number, (line, colour) in enumerate(wrapped[:_LINES]):
        draw.text((left, top + box + 6 + 20 * number), line, colour, _font(14))
    draw.text((left, top + box + 8 + 20 * _LINES), _fitted(card.key, _font(12), inner), _SOFT, _font(12))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of a text that are no wider than so many pixels."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_fitted(word, font, width))
    return lines


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A text cut to a width in pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
