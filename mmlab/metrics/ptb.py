"""Words of captions as coco-caption counts them: Stanford's PTBTokenizer as rules, without Java."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NUMERALS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2150-\u218b\u2460-\u249b"
"""Signs of their own, though `\\w` takes them for letters."""
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u064b-\u065e\u0670\u0900-\u0903\u093c-\u094d\u0981-\u0983"
    "\u09bc-\u09cd\u0a3c-\u0a4d\u0abc-\u0acd\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
)
"""Accents and vowel signs are letters, though not to `\\w`."""
_LETTER = rf"(?:[^\W\d_{_NUMERALS}]|[{_MARKS}])"
_SIGN = rf"(?:[^\W_{_NUMERALS}]|[{_MARKS}])"
"""A letter or a digit."""
_WORD = rf"{_LETTER}{_SIGN}*(?:[.!?]{_LETTER}{_SIGN}*)*"
_DASH = "[-\u2010\u2011]"
_QUOTE = "['\u2019]"
_ENDS = "(?i:[sdm]|ll|re|ve)"
_ELIDED = rf"(?:[dDlLoO]{_QUOTE}{_LETTER})?"
_PART = rf"{_ELIDED}{_SIGN}+"
"""Of a compound, such as `o'clock` in `five-o'clock`."""
_BOUNDED = "{0,99}"
"""As often as that, lest `a,a,a,...` without end takes time in the square of its length."""
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_PATH, _PATH_END = r"[^\s\"<>|(){}]+", r"[^\s\"<>|(){}.!?,-]"

_ABBREVIATIONS = r"""
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif capt cf
    cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs ed\.d elec ens esq est etc ext feb
    fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar
    md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc
    ph\.d ph plc ppte pptes ppty pptys pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen sens sep
    sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs treas tue tues univ va vs vt wed wis
    wisc wm wyo
"""
_CAPITAL = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
"""Abbreviations that are words without a capital letter."""
_NUMBERED = "art ca fig figs no nos op p pp prop"
"""Abbreviations where a number follows."""
_WHOLE = "c'est c'mon cap'n e'er ev'ry li'l nat'l nor'easter s'mores somethin'"
_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now
    Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet
    You
"""
"""A full stop between a single letter and one of these ends a sentence."""


def _any(words: str) -> str:
    return "|".join(words.split())


_RULES = [
    re.compile(rule)
    for rule in (
        # Contractions. Where there is a group it is the token; what must follow it counts as length too.
        rf"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_QUOTE}[tT]",
        rf"[nN]{_QUOTE}[tT]",
        rf"({_LETTER}+){_QUOTE}{_ENDS}",
        rf"\u2019{_ENDS}|'{_ENDS}(?!{_LETTER})",
        r"('[tT])(?i:is|was)",
        rf"(?i:(can(?=not)|gon(?=na)|got(?=ta)|gim(?=me)|lem(?=me)|wan(?=na))(?:not|na|ta|me))(?!{_SIGN})",
        rf"(?i:{_QUOTE}(?:em|till?|cause|n{_QUOTE})|\u2019n|'n(?!{_LETTER}|-))|{_QUOTE}\d\d(?:[sS]|(?!\S))",
        rf"(?i:[djl]{_QUOTE}|y{_QUOTE}(?={_LETTER})|ol{_QUOTE})",
        # Apostrophes inside a word: o'clock, d'oeuvre, O'Brien; ma'am, Hawai'i.
        rf"[dlnoA-HJ-XZ]{_QUOTE}{_LETTER}{{2,}}",
        rf"{_LETTER}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]{_LETTER}*",
        rf"(?i:{_any(_WHOLE)})",
        # Abbreviations keep their full stop, and so does a word before a stop and a comma.
        rf"(?i:{_any(_ABBREVIATIONS)})\.",
        rf"(?:{_any(_CAPITAL)}|{_any(_CAPITAL.upper())})\.",
        rf"(?i:{_any(_NUMBERED)})\.(?= ?\d)",
        rf"[A-Za-z]\.(?!\s+(?:{_any(_STARTERS)})(?!\S))",
        rf"{_INITIALS}\.?(?:-{_SIGN}+)*|(?:{_SIGN}+-)+{_INITIALS}\.(?:-{_SIGN}+)*",
        rf"(?:{_WORD}|{_PART}(?:[-_]{_PART})*)\.(?=[,;:])",
        # Words and compounds: street.a, mp3; a_b; table/desk; black-and-white; R&B.
        _WORD,
        rf"{_PART}(?:(?:{_DASH}|_){_PART})*",
        r"[A-Za-z0-9]+(?:-[A-Za-z]+)*(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+)*){1,2}",
        rf"{_ELIDED}{_SIGN}(?:{_SIGN}|[.,]){_BOUNDED}(?:{_DASH}{_PART})+",
        r"[A-Z]+(?:[&+][A-Z]+)+|[A-Z]+\$|[CF]#|[Cc]\+\+|(?i:anti|pro)-",
        # Numbers, fractions, telephone numbers.
        r"[-+]?[.,:]?\d+(?:[.,:]\d+)*",
        r"(?:\d{1,4}[- \u00a0])?\d{1,4}/\d{1,4}(?!\d)",
        r"(?:\(\d{2,3}\) ?|\+?\d{2,4}[- ])\d{3,4}[- ]\d{3,5}",
        # Addresses, names, markup, faces.
        rf"(?i:https?://{_PATH}{_PATH_END})",
        rf"(?i:(?:www\.{_PATH}\.|(?:[a-z]\w*\.)+)(?:com|net|org|edu)(?:/{_PATH}{_PATH_END})?)",
        rf"[A-Za-z0-9][^\s\"<>|(){{}}]{_BOUNDED}@(?:[^\s\"<>|(){{}}.]+\.)*[^\s\"<>|(){{}}.]+",
        r"@[A-Za-z_][A-Za-z0-9_]*|\#[^\W\d_]+|&\#\d+;",
        r"</?[A-Za-z][\w.:-]*(?:\s+[A-Za-z][\w.:-]*(?:=(?:\"[^\"]*\"|'[^']*'))?)*\s*/?>|<[!?][A-Za-z-][^>]*>",
        r"[<>]?[:;=][-o*']?[()\[\]{DdPpO|\\@](?!\w)|[-^x=~<>']_[-^x=~<>']",
        # Runs of one sign, and signs. What no rule matches is left out: a quote, a dash, an emoji.
        r"[?!]{2,}|_+|\*+|\#+|@+|<<|>>|-{2,}|''|\.{3,5}|[\u2018\u2019\u201c\u201d]{2,}",
        r"[$%&+/=<>\\^|~()\[\]{}]",
        r"[\u00a1-\u00aa\u00ac-\u00b4\u00b6-\u00b9\u00bc-\u00bf\u00d7\u00f7\u2016\u2017\u201a\u201e-\u2023]",
        r"[\u2030-\u2038\u203b\u203e-\u2044\u2070-\u209c\u20ac\u2100-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uffe6]",
    )
]
"""The longest match is a token, the first rule's among equals."""
_PLAIN = re.compile(r"([A-Za-z]+)(?:,?(?:\s+|$)|(?<=\w\w)\.\s*$)")
"""Most words need no rule."""
_DIVIDED = "cannot gimme gonna gotta lemme wanna"
_NOT_PLAIN = frozenset(f"{_DIVIDED} {_ABBREVIATIONS} {_CAPITAL.lower()}".split())

_MARKS_OUT = "'' ' `` ` . ? ! , : - -- --- ---- ... .... ..... ;"
"""What coco-caption takes out, and longer runs, which the tool shortens to these."""
_PUNCTUATION = frozenset(_MARKS_OUT.split())
_ENTITIES = {
    "amp": "&", "apos": "'", "gt": ">", "lt": "<", "mdash": "--", "nbsp": " ", "ndash": "--", "quot": '"',
}  # fmt: skip
_ENTITY = re.compile(rf"(?i)https?://\S+|&({'|'.join(_ENTITIES)});")
_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "\u00a2": "cents", "\u00a3": "#", "\u00a4": "$", "\u20ac": "$",
    "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
}  # fmt: skip
_IN_ASCII = re.compile(rf"n?\u2019(?:t|{_ENDS})|[\u2018\u2019\u201c\u201d]+")
_QUOTES = str.maketrans({"\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''"})


def ptb_tokens(text: str) -> list[str]:
    """Words of a text in small letters, without punctuation, as coco-caption and pycocoevalcap get them.

    They run `PTBTokenizer -preserveLines -lowerCase` of CoreNLP 3.4.1 and take a list of marks out. The rules
    here were found by asking that tool, not taken from its source. They cover:

    - contractions: `it 's`, `do n't`, `can not`, `gon na`, `'t is`, `rock 'n' roll`; also with a curly quote;
    - apostrophes inside words: `o'clock`, `d'oeuvre`, `ma'am`;
    - hyphens, slashes, underscores and points inside words: `black-and-white`, `and/or`, `street.a`;
    - abbreviations and initials, which keep their stop: `mr.`, `u.s.`, `no. 5`;
    - numbers, times, dates, ordinals; `1 1/2` and telephone numbers, one token with unbreakable blanks in it;
    - money: `$ 5`, `5 cents`, and as the tool has it `# 5` for pounds, `$ 5` for euros;
    - brackets, which stay: `-lrb-`, `-rrb-`, ..., for coco-caption takes them out in capitals only;
    - dashes, quotes and ellipses, which go, unlike runs such as `!!`; other signs, each a token;
    - addresses, e-mail, hashtags, markup, faces; letters of any script, those outside the BMP left out.

    What can differ: the tool reads all captions of an evaluation as one text, so that one that ends in a
    single letter and a stop (`... the letter k.`) loses the stop where the next begins with `A` or `The`;
    here each is read alone. It loses step at a carriage return inside a caption, which here is a blank. File
    names (`1.jpg`), dashes behind some abbreviations (`jan.-x`), `&lt;` before a name and rare signs are not
    covered.
    """
    text = _ENTITY.sub(_unescaped, text.replace("\u00ad", ""))
    return [token for token in _tokens(text) if token not in _PUNCTUATION]


def _unescaped(found: re.Match[str]) -> str:
    return found[0] if found[1] is None else _ENTITIES[found[1].lower()]


def _tokens(text: str) -> Iterator[str]:
    """Tokens in turn, punctuation among them."""
    place = 0
    while place < len(text):
        plain = _PLAIN.match(text, place)
        if plain is not None and (word := plain[1].lower()) not in _NOT_PLAIN:
            yield word
            place = plain.end()
            continue
        matches = [match for rule in _RULES if (match := rule.match(text, place)) is not None]
        if not matches:
            place += 1
            continue
        longest = max(matches, key=re.Match.end)
        token = longest[longest.lastindex or 0]
        yield _written(token)
        place += len(token)


def _written(token: str) -> str:
    """A token as the tool spells it."""
    if token in _WRITTEN:
        return _WRITTEN[token]
    if _IN_ASCII.fullmatch(token.lower()) is not None:
        return token.lower().translate(_QUOTES)
    return token.lower().replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\u00a0")
