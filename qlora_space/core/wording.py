"""Numbers and times as people read them: units, sensible digits. Pure functions."""

import math
import re
import time
import unicodedata

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNSEEN = ("Cc", "Cf", "Co", "Cs")  # Unicode's categories
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# The Hub's own begin with hf_; those of a sign-in have dots, dashes and underscores, too.
_TOKENS = re.compile(r"\b(?:hf_(?=[\w.-]*[A-Z])|eyJ|[Bb]earer )[\w.~+/=-]+")
_FOLDERS = re.compile(r"(?<![\w/:.<~])~?/(?:[^\s/'\"<>:,;]+/)+")


def gib(value: float) -> str:
    """Memory: '310 MiB', '1.3 GiB', '139 GiB'."""
    if value < 0.0995:
        return f"{value * 1024:.0f} MiB"
    return f"{value:.2g} GiB" if value < 9.95 else f"{value:.0f} GiB"


def num_bytes(value: float) -> str:
    """File size: '6 MB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{significant(value / size, 2)} {unit}"
    return f"{value:.0f} B"


def count(value: float) -> str:
    """'950', '3.4k', '1.2M', '7.6B'."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return significant(value / size, 2) + unit
    return f"{value:.0f}"


def counted(number: int, noun: str) -> str:
    """'1 row', '1,200 rows'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate(tokens_per_second: float) -> str:
    return f"{count(tokens_per_second)} tok/s"


def percent(fraction: float) -> str:
    """'94 %'; one more digit near 0 and 100 %: '0.4 %', '99.6 %'."""
    value = 100 * fraction
    is_near_an_end = 0 < value < 0.95 or 99 < value < 99.95
    return f"{value:.1f} %" if is_near_an_end else f"{value:.0f} %"


def perplexity(loss: float) -> float:
    """exp of a loss in nats per token, finite for any loss."""
    return math.exp(min(loss, 50.0))


def significant(value: float, digits: int = 3) -> str:
    """'0.0412', '3.14', '1,234'."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 8)}f}"


def small(value: float) -> str:
    """A learning rate: '2e-4', '1.3e-5'."""
    if value == 0 or not math.isfinite(value):
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """'8 s', '1 min 20 s', '12 min', '2 h 5 min', '3 d 4 h'."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole} s" if whole else "under 1 s"
    if whole < 5 * _MINUTE:
        return _two(whole, _MINUTE, "min", 1, "s")
    if whole < _HOUR:
        return f"{whole / _MINUTE:.0f} min"
    return (
        _two(whole, _HOUR, "h", _MINUTE, "min")
        if whole < _DAY
        else _two(whole, _DAY, "d", _HOUR, "h")
    )


def rough_duration(seconds: float) -> str:
    """For an estimate: '45 s', '1.5 min', '12 min', '3.5 h', '2.1 d'."""
    for unit, size in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 9.95 else f"{round(value, 1):g} {unit}"
    return duration(seconds)


def _two(value: int, large: int, large_unit: str, unit_size: int, unit: str) -> str:
    first, rest = divmod(value, large)
    second = rest // unit_size
    return f"{first} {large_unit} {second} {unit}" if second else f"{first} {large_unit}"


def age(then: float, now: float | None = None) -> str:
    """How long ago: 'just now', '4 min ago', '3 d ago'."""
    seconds = (time.time() if now is None else now) - then
    if seconds < _MINUTE:
        return "just now"
    for unit, size in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return ""


def width(bits: float, *, calibrated: bool) -> str:
    """Bit width of a base: '4 bit' (NF4), '2.5 bit', '4 bit (calibrated)', which is the usual way below 4."""
    return f"{bits:.3g} bit" + (" (calibrated)" if calibrated and bits >= 4 else "")


def price(usd: float) -> str:
    return f"${usd:.2f}"


def next_name(name: str) -> str:
    """For a run made from another: 'Tea', 'Tea 2', 'Tea 3'; at most 80 characters."""
    stem, number = re.fullmatch(r"(.*?)(?: (\d{1,3}))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    after = f" {int(number or 1) + 1}"
    return stem[: 80 - len(after)] + after


def plain_name(text: str) -> str:
    """One line of letters that can be seen: without control, bidirectional and other invisible characters, which make
    a name look like another one."""
    shown = (" " if unicodedata.category(c) in _UNSEEN else c for c in text)
    return " ".join("".join(shown).split())


def visible(text: str) -> str:
    """With signs such as 'U+202E' for characters that act and are not seen: control characters, which a terminal obeys,
    and those that reorder what stands beside them. Line ends and tabs stay."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _ACTING.sub(lambda found: _sign(found.group()), lines)


def visible_name(text: str) -> str:
    """One line, with signs for whatever is not seen: two names that look the same are the same."""
    return "".join(_sign(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def _sign(character: str) -> str:
    return f"U+{ord(character):04X}"


def without_tokens(text: str) -> str:
    """With "(a token)" for each token of the Hub or of a sign-in."""
    return _TOKENS.sub("(a token)", text)


def without_folders(text: str) -> str:
    """Paths shortened to their last name: the layout of the server's disk is private."""
    return _FOLDERS.sub("…/", text)
