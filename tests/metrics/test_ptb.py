"""Words of captions: against what the Java tool says, on awkward strings and on all captions of COCO."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlab.metrics.ptb import ptb_tokens

# Made with pycocoevalcap 1.2: its PTBTokenizer (stanford-corenlp-3.4.1.jar), each text alone, and its list of
# marks to remove.
FROM_THE_TOOL = [
    ("A man riding a wave on top of a surfboard.",
     "a man riding a wave on top of a surfboard"),
    ("It's a man's dog, don't you think?",
     "it 's a man 's dog do n't you think"),
    ("You can't; I'm sure they're here, we've gone, he'd say she'll come",
     "you ca n't i 'm sure they 're here we 've gone he 'd say she 'll come"),
    ("it\u2019s \u201cquoted\u201d, don\u2019t \u2018you\u2019 see\u2026",
     "it 's quoted do n't you see"),
    ("cannot gonna wanna gotta gimme lemme dunno",
     "can not gon na wan na got ta gim me lem me dunno"),
    ("'Tis rock'n'roll, rock 'n' roll and the '80s, 80's and 1980s",
     "'t is rock 'n' roll rock 'n' roll and the '80s 80 's and 1980s"),
    ("the boys' game and James's 's-sign",
     "the boys game and james 's 's sign"),
    ("should've shouldn't've y'all ma'am o'clock D'Angelo l'eau O'Brien's Hawai'i",
     "should 've should n't 've y' all ma'am o'clock d'angelo l'eau o'brien 's hawai'i"),
    ("hors d'oeuvre on a plate at five o'clock",
     "hors d'oeuvre on a plate at five o'clock"),
    ("c'mon, tell 'em somethin' 'til goin' home",
     "c'mon tell 'em somethin' 'til goin home"),
    ("a (man) [dog] {cat} <b>bold</b>",
     "a -lrb- man -rrb- -lsb- dog -rsb- -lcb- cat -rcb- <b> bold </b>"),
    ("\"Stop\" and 'go' and ``tick'' and `one`",
     "stop and go and tick and one"),
    ("a black-and-white cross-country well-lit half-",
     "a black-and-white cross-country well-lit half"),
    ("jack-o'-lantern, twenty-five, off- road, -end",
     "jack-o lantern twenty-five off road end"),
    ("beach--kite and a - b \u2013 c \u2014 d ... e. . . f",
     "beach kite and a b c d e. f"),
    ("and/or he/she a/b/c tub/shower, w/o 24/7 and / or",
     "and/or he/she a/b/c tub/shower w/o 24/7 and / or"),
    ("mountains,snow and street.A river.a end.Next laptops,computer,keyboard",
     "mountains snow and street.a river.a end.next laptops computer keyboard"),
    ("toilet,well-lit a.b-c 1.5-litre",
     "toilet,well-lit a.b-c 1.5-litre"),
    ("wings.l .neck it;s p;ayer x:y 2:46pm",
     "wings.l neck it s p ayer x y 2:46 pm"),
    ("T.V. and t.v. in the U.S.A. at 5 p.m.",
     "t.v. and t.v. in the u.s.a. at 5 p.m."),
    ("U.S.-based J.R.R. Tolkien D.V.D Ph.D. i.e. e.g.,",
     "u.s.-based j.r.r. tolkien d.v.d ph.d. i.e. e.g."),
    ("Mr. Smith vs. Dr. Jones of St. Mary's, Main St. etc.",
     "mr. smith vs. dr. jones of st. mary 's main st. etc."),
    ("no. 5, No. 7, no. fig. 3 and p. 12",
     "no. 5 no. 7 no fig. 3 and p. 12"),
    ("the sign reads k.",
     "the sign reads k."),
    ("the sign reads K. The bus",
     "the sign reads k the bus"),
    ("the letter K. a bus",
     "the letter k. a bus"),
    ("Mass. and mass. Wash. and wash.",
     "mass. and mass wash. and wash"),
    ("12th 1st 22nd-floor 3d 4x4 mp3 b-25 P-51",
     "12th 1st 22nd-floor 3d 4x4 mp3 b-25 p-51"),
    ("1,000 1,000.5 .5 -5 +5 10:30 23:58. 11.01.2009 10-29-2011",
     "1,000 1,000.5 .5 -5 +5 10:30 23:58 11.01.2009 10-29-2011"),
    ("1/2 1 1/2 3-1/2 ½ 1½ 50/50",
     "1/2 1\xa01/2 3-1/2 1/2 1 1/2 50/50"),
    ("$5 $5.00 US$5 £3 €4 5¢ 50% #41 # 7",
     "$ 5 $ 5.00 us$ 5 # 3 $ 4 5 cents 50 % # 41 # 7"),
    ("(555) 123-4567 and 555-123-4567",
     "-lrb-555-rrb-\xa0123-4567 and 555-123-4567"),
    ("5'10\" 6' 8\"x10\" 5° 98.6°F 4\xd74",
     "5 10 6 8 x10 5 ° 98.6 ° f 4 \xd7 4"),
    ("A&P R&B AT&T a&b a & b &amp; C++ C# A+B a+b",
     "a&p r&b at&t a & b a & b & c++ c# a+b a + b"),
    ("wow!! what?! really? yes! !? a!b",
     "wow !! what ?! really yes !? a!b"),
    ("hash#tag #tag @user a@b.com, www.foo.com http://foo.com/bar?x=1.",
     "hash #tag #tag @user a@b.com, www.foo.com http://foo.com/bar?x=1"),
    (":) :-( ;) :D ^_^ <3 (:",
     ":-rrb- :--lrb- ;-rrb- :d ^_^ < 3 -lrb-"),
    ("a_b _a __ * ** = == ~5 | \\ ^",
     "a_b _ a __ * ** = = = ~ 5 | \\ ^"),
    ("café naïve Ñandú Привет мир 日本語 ελληνικά",
     "café naïve ñandú привет мир 日本語 ελληνικά"),
    ("हिन्दी עברית السلام",
     "हिन्दी עברית السلام"),
    ("a😀b ❤ ★ → \u2122 ©2009 m² H₂O soft\xadhyphen zero\u200bwidth",
     "a b ❤ ★ → \u2122 © 2009 m ² h ₂ o softhyphen zero width"),
    ("abc., abc.) abc.. etc., etc.. 1.,",
     "abc. abc -rrb- abc etc. etc. 1."),
    ("tab\tand   blanks \u3000 here",
     "tab and blanks here"),
    ("sold out.No more anti- war pro-am",
     "sold out.no more anti- war pro-am"),
    ("THE CAT ISN'T HERE, AREN'T THEY'LL",
     "the cat is n't here are n't they 'll"),
    ("GIRLS' and it's's and n't",
     "girls and it 's 's and n't"),
    ("\u201c\u2018nested\u2019\u201d \u2019\u2019 \u201elow\u201c «guillemets»",
     "``` nested ''' \u201e low guillemets"),
    ("",
     ""),
    ("   ",
     ""),
    ("...",
     ""),
    ("'",
     ""),
]  # fmt: skip
TOKENS_OF_COCO = "d37b2c787121f42fbd032dc787108a0750c71df4490020f4206e5844a4d14af9"
"""SHA-256 of what the tool makes of the 25,014 captions, each alone: words by blanks, captions by lines."""


@pytest.mark.parametrize(("text", "tokens"), FROM_THE_TOOL)
def test_words_are_those_of_the_tool(text: str, tokens: str) -> None:
    assert " ".join(ptb_tokens(text)) == tokens


def test_every_caption_of_coco_has_the_words_that_the_tool_finds(public_data: Path) -> None:
    path = public_data / "reference-results" / "coco" / "annotations" / "captions_val2017.json"
    captions = [one["caption"] for one in json.loads(path.read_text())["annotations"]]
    lines = [" ".join(ptb_tokens(caption)) for caption in captions]
    assert len(lines) == 25_014
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == TOKENS_OF_COCO


@given(st.text(max_size=60))
def test_a_token_is_one_word_in_small_letters(text: str) -> None:
    for token in ptb_tokens(text):
        assert token
        assert token == token.lower()
        assert token.replace("\u00a0", "").split() == [token.replace("\u00a0", "")]


@given(st.lists(st.from_regex(r"[b-z]{6,9}", fullmatch=True)))
def test_plain_words_are_what_blanks_part(words: list[str]) -> None:
    words = [word for word in words if word not in ("messrs", "cannot")]
    assert ptb_tokens(" ".join(words)) == words
    assert ptb_tokens(f"  {', '.join(words)} .\n") == words


@pytest.mark.parametrize("unit", ["a,", "a'", "a-", "<a ", "www."])
def test_an_answer_without_end_takes_no_time_in_the_square_of_its_length(unit: str) -> None:
    start = time.process_time()
    ptb_tokens(unit * 10_000)
    assert time.process_time() - start < 5  # 15 of the square
