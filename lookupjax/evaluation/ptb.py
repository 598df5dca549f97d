"""English words as the Penn Treebank splits them, lower-case and without punctuation.

COCO's caption scores compare the output of Stanford's PTBTokenizer (Java, CoreNLP 3.4.1, -preserveLines
-lowerCase), from which their script removes punctuation. These are its rules in Python, found by what it does
with texts, as far as captions need them; tests/evaluation/test_captions.py compares both where Java is.

At every place the longest match counts, then the first rule.
"""

import re
from collections.abc import Callable
from functools import lru_cache

PUNCTUATION = {"''", "'", "``", "`", "-lrb-", "-rrb-", "-lcb-", "-rcb-", *".?!,:;-", "--", "..."}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SAME = str.maketrans(
    {
        "\u2018": "`",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "--",
        "\u2014": "--",
        "\u2026": "...",
    }
)
SIGNS = {"\u00a3": "#", "\u20ac": "$", "\u00a2": "cents", "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4"}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": ""}
# abbreviations keep their full stop; the second ones only when they begin with a capital
EITHER = (
    "adm al apr assn asst aug ave bldg blvd bros capt cf co col corp cpl ct dec dept dr est esq etc feb "
    "fri ft gen gov hon inc jan jr jul jun ky lt ltd maj mar messrs mlle mme mo mon mr mrs ms mt nov oct "
    "pres prof pvt rd rep rev sen sep sept sgt sq sr st ste supt thu thurs tue tues univ v va vs wed "
)
CAPITAL = (
    "ala ariz ark calif conn dak del fla ga ill ind kan la mass md mich minn miss mont neb nev okla ore "
    "pa penn tenn tex vt wash wis wyo "
)
ALNUM, LETTER = r"[^\W_\u00bc-\u00be]", r"[^\W\d_\u00bc-\u00be]"
EDGE = rf"(?!{ALNUM})"
ENDING = rf"(?:[sSdDmM]|ll|LL|re|RE|ve|VE){EDGE}"  # of contractions, after the apostrophe
BLANK = "\u00a0"  # inside a token: it does not end it


def forms(names: str, *, either: bool) -> str:
    """Alternatives: capitalised and, with `either`, in small letters and in capitals."""
    both = (f"{w.capitalize()}|{w}|{w.upper()}" if either else w.capitalize() for w in names.split())
    return "|".join(both)


def alone(token: str) -> list[str]:
    return [token]


def unbroken(token: str) -> list[str]:
    return ["".join(BRACKETS.get(c, c) for c in token).replace(" ", BLANK)]


def after(count: int) -> Callable[[str], list[str]]:
    """Splits a token after `count` letters, from its end if negative."""
    return lambda token: [token[:count], token[count:]]


RULES: list[tuple[re.Pattern, Callable[[str], list[str]]]] = [
    (re.compile(pattern), make)
    for pattern, make in (
        (r"</?[A-Za-z][\w:-]*(?:\s[^<>]*=[^<>]*)?\s*/?>|<[!?][^<>]*>", unbroken),  # tags
        (r"(?:https?|ftp)://[^\s<>\"]*[^\s<>\".,?!)]", alone),
        (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", alone),
        (r"[@#][A-Za-z_]\w*", alone),
        (r"(?i:&(?:amp|lt|gt|quot|nbsp);)", lambda token: ENTITIES[token.lower()].split()),
        (rf"[<>]?[:;=][-o*']?(?:[()\\{{@|\[\]]|[DPdpO]{EDGE})", unbroken),  # faces
        # contractions
        (rf"[A-Za-z]+[nN]'[tT]{EDGE}", after(-3)),
        (rf"'{ENDING}", alone),
        (rf"(?i:cannot|gonna|gotta|lemme|gimme|wanna){EDGE}", after(3)),
        (rf"(?i:'t(?:is|was)){EDGE}", after(2)),
        # apostrophes that belong to a word
        (rf"(?i:'n'|ol')|(?i:'n|o'clock|'em|'till?|'cause|d'ya|c'est|e'er|s'mores|c'mon){EDGE}", alone),
        (rf"[jJyY]'(?={LETTER})(?!{ENDING})", alone),
        (r"'[2-9]0s", alone),
        (rf"(?:[dlnoDLNO]'|[A-HJ-XZ]'(?=[A-Z]))(?!{ENDING}){LETTER}+(?:-{ALNUM}+)*", alone),
        (rf"[A-Za-z]+[aeiouy]'(?!{ENDING})[aeiouA-Z]{LETTER}*", alone),
        # numbers
        (r"\(\d{3}\)[ \u00a0]?\d{3}[- \u00a0]\d{4}|\d{3}[ .-]\d{3}[ .-]\d{4}", unbroken),
        (r"\d+[ \u00a0]\d+/\d+", unbroken),
        (r"[-+]?(?:\d+(?:[:.,]\d+)*|\.\d+(?:[:.,]\d+)*)", alone),
        (r"(?i:nos?|figs?)\.(?=\s*\d)", alone),
        # abbreviations
        (rf"(?:{forms(EITHER, either=True)}|{forms(CAPITAL, either=False)}|Ph\.D)\.", alone),
        (rf"(?:[A-Za-z]\.)+(?!{ALNUM})", alone),
        (r"[A-Z]+&[A-Z]+|[cC]\+\+|[A-Za-z]#", alone),
        # words
        (rf"{ALNUM}+(?:[-_/]{ALNUM}+)*", alone),
        (rf"{LETTER}{ALNUM}*(?:[-/]{ALNUM}+)*(?:\.{LETTER}{ALNUM}*)+(?:-{ALNUM}+)*", alone),
        # signs
        (r"[!?]+|-{5,}|_+|\*+|#{2,}|@+|<<|>>|``|''", alone),
        (r"-{2,4}", lambda token: ["--"]),
        (r"\.{3,5}", lambda token: ["..."]),
        (r'"', lambda token: ["''"]),
        (r"[()\[\]{}]", unbroken),
        (r"[\u00a2\u00a3\u20ac\u00bc-\u00be]", lambda token: [SIGNS[token]]),
        (r"\S", alone),
    )
]
PLAIN = re.compile(r"[a-z]+(?=[ ]|$)")  # most words of captions
EXCEPTIONS = {"cannot", "gonna", "gotta", "lemme", "gimme", "wanna"}


def split(text: str) -> list[str]:
    """All tokens of a line, lower-case, punctuation included."""
    text, tokens, place = text.translate(SAME), [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        plain = PLAIN.match(text, place)
        if plain and plain[0] not in EXCEPTIONS:
            tokens.append(plain[0])
            place = plain.end()
            continue
        found = ((match.end(), -i) for i, (rule, _) in enumerate(RULES) if (match := rule.match(text, place)))
        end, i = max(found)
        tokens += RULES[-i][1](text[place:end])
        place = end
    return [token.lower() for token in tokens]


@lru_cache(maxsize=2**16)
def tokenize(text: str) -> str:
    """The words of a text between single spaces, as COCO's scores take them."""
    return " ".join(token for token in split(text.replace("\n", " ")) if token not in PUNCTUATION)
