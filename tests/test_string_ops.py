"""Operators on texts, against Python's own."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.helper import make_node as node
from string_models import MACHINE_LEARNING, TEXTS, check, model_of, strings

import tensorsmith
from compiler.ir.automaton import automaton
from compiler.ir.text_table import slot_of, text_hash, text_table
from tensorsmith import UserError

few = settings(max_examples=6, deadline=None, phases=[Phase.generate])


def vector(texts: list[str]) -> np.ndarray:
    return strings(*texts)


VECTORS = st.lists(TEXTS, max_size=6).map(vector)


@few
@given(VECTORS, VECTORS)
def test_equal_broadcasts(left: np.ndarray, right: np.ndarray) -> None:
    a, b = left[:, None], np.append(right, left)[None]
    check(model_of(node("Equal", ["a", "b"], ["y"]), a=a, b=b), {"a": a, "b": b}, [(a == b).astype(bool)])


@few
@given(VECTORS, st.lists(TEXTS, min_size=1, max_size=9, unique=True), TEXTS)
def test_encoders(x: np.ndarray, keys: list[str], other: str) -> None:
    texts = np.append(x, vector(keys))
    numbers, names = list(range(5, 5 + len(keys))), [key + "?" for key in keys]
    default = 3 * len(keys)

    def encoder(output: str, **attrs: object) -> object:
        return node("LabelEncoder", ["x"], [output], domain=MACHINE_LEARNING, **attrs)

    model = model_of(
        encoder("y0", keys_strings=keys, values_int64s=numbers, default_int64=default),
        encoder("y1", keys_strings=keys, values_strings=names, default_string=other),
        encoder("y2", keys_strings=keys, values_floats=[float(n) for n in numbers]),
        node("OneHotEncoder", ["x"], ["y3"], domain=MACHINE_LEARNING, cats_strings=keys),
        x=texts,
    )
    found, named = dict(zip(keys, numbers, strict=True)), dict(zip(keys, names, strict=True))
    hot = (texts[:, None] == vector(keys)).astype(np.float32)
    wants = [
        np.array([found.get(text, default) for text in texts], np.int64),
        vector([named.get(text, other) for text in texts]),
        np.array([found.get(text, -0.0) for text in texts], np.float32),
        hot,
    ]
    check(model, {"x": texts}, wants)


def test_a_table_of_many_keys() -> None:
    keys = [f"key {number}" for number in range(20_000)]
    table = text_table(keys)
    for number in range(0, len(keys), 97):
        value = text_hash(keys[number].encode(), table.seed)
        assert table.slots[slot_of(value, table.displacements[value & len(table.displacements) - 1], table.bits)] == number
    model = model_of(node("LabelEncoder", ["x"], ["y"], domain=MACHINE_LEARNING, keys_strings=keys, values_int64s=range(len(keys))), x=strings("a"))
    module = tensorsmith.compile(model, cache=False)
    x = vector([*keys, "key", "key 20000", ""])
    np.testing.assert_array_equal(module(x)[0], [*range(len(keys)), -1, -1, -1])


def test_encoders_of_other_types_are_refused() -> None:
    with pytest.raises(UserError, match="keys of type i64 for str"):
        tensorsmith.compile(model_of(node("LabelEncoder", ["x"], ["y"], domain=MACHINE_LEARNING, keys_int64s=[1], values_int64s=[1]), x=strings("a")))


@few
@given(VECTORS, VECTORS)
def test_concatenation_broadcasts(left: np.ndarray, right: np.ndarray) -> None:
    a, b = left[:, None], np.append(right, left)[None]
    wants = [np.array([[x + y for y in b[0]] for x in left], object).reshape(len(left), b.size)]
    check(model_of(node("StringConcat", ["a", "b"], ["y"]), a=a, b=b), {"a": a, "b": b}, wants)


def split(x: np.ndarray, delimiter: str | None, limit: int) -> list[np.ndarray]:
    pieces = [text.split(delimiter, limit) for text in x]
    width = max(map(len, pieces), default=0)
    padded = np.array([[*found, *[""] * (width - len(found))] for found in pieces], object).reshape(len(x), width)
    return [padded, np.array(list(map(len, pieces)), np.int64)]


SPLIT_TEXTS = st.text(st.sampled_from(" \u00a0\u2003\u3000\tabé\0"), max_size=12) | TEXTS


@few
@given(st.lists(SPLIT_TEXTS, max_size=5).map(vector), st.sampled_from(["", "a", "ab", "é", "\0", " a", "abababababab"]), st.integers(-2, 3))
def test_splitting(x: np.ndarray, delimiter: str, limit: int) -> None:
    texts = np.append(x, strings("abababababab" * 3 + "ab", "aba\0\0"))
    model = model_of(node("StringSplit", ["x"], ["y0", "y1"], delimiter=delimiter, maxsplit=limit), x=texts)
    check(model, {"x": texts}, split(texts, delimiter or None, limit))


def test_splitting_one_text() -> None:
    x = np.array("a,b,", object)
    model = model_of(node("StringSplit", ["x"], ["y0", "y1"], delimiter=","), x=x)
    check(model, {"x": x}, [strings("a", "b", ""), np.array(3)])


def test_every_white_space_splits() -> None:
    spaces = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    others = [chr(ord(space) + step) for space in spaces for step in (-1, 1) if not chr(ord(space) + step).isspace()]
    x = vector([f"a{character}b" for character in (*spaces, *others)])
    check(model_of(node("StringSplit", ["x"], ["y0", "y1"]), x=x), {"x": x}, split(x, None, -1))


def test_every_character_changes_case() -> None:
    texts = ["".join(map(chr, [c for c in range(first, first + 512) if not 0xD800 <= c < 0xE000])) for first in range(0, 0x110000, 512)]
    for action, change in (("UPPER", str.upper), ("LOWER", str.lower)):
        module = tensorsmith.compile(model_of(node("StringNormalizer", ["x"], ["y"], case_change_action=action), x=vector(texts)), cache=False)
        assert module(vector(texts))[0].tolist() == ["".join(map(change, text)) for text in texts]


@few
@given(VECTORS, st.sampled_from(["NONE", "LOWER", "UPPER"]), st.booleans(), st.booleans(), st.lists(TEXTS, max_size=2))
def test_normalizing(x: np.ndarray, action: str, sensitive: bool, rows: bool, words: list[str]) -> None:
    change = {"NONE": str, "LOWER": lambda t: "".join(map(str.lower, t)), "UPPER": lambda t: "".join(map(str.upper, t))}
    fold = change["NONE" if sensitive else "UPPER" if action == "UPPER" else "LOWER"]
    stopwords = [*words, *x[:2]]
    texts = np.append(x, strings("Ab", "aB"))
    kept = [change[action](text) for text in texts if fold(text) not in set(map(fold, stopwords))] or [""]
    feeds = {"x": texts[None] if rows else texts}
    attrs = {"case_change_action": action, "is_case_sensitive": int(sensitive), **({"stopwords": stopwords} if stopwords else {})}
    want = vector(kept)
    check(model_of(node("StringNormalizer", ["x"], ["y"], **attrs), **feeds), feeds, [want[None] if rows else want])


def test_texts_made_in_a_loop_stay() -> None:
    """The buffer of texts grows in every iteration, and is as it was for the next run."""
    body = helper.make_graph(
        [node("StringConcat", ["before", "x"], ["after"]), node("Identity", ["go"], ["still"]), node("Identity", ["after"], ["scanned"])],
        "body",
        [
            helper.make_tensor_value_info("k", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.STRING, ["x_0"]),
        ],
        [onnx.ValueInfoProto(name=name) for name in ("still", "after", "scanned")],
    )
    x = strings("ab", "", "é" * 50)
    feeds = {"x": x, "n": np.array(40)}
    scanned = np.stack([x * (2 + count) for count in range(40)])
    check(model_of(node("Loop", ["n", "", "x"], ["y0", "y1"], body=body), **feeds), feeds, [x * 41, scanned])


LETTERS = st.sampled_from(["a", "b", "é", "[ab]", "[^aé]", ".", r"\d", r"\w", r"\W", r"\s", "[a-dé-ü]", r"\.", "😀", r"[^\w.]", r"[]a]"])
PLACES = st.sampled_from(["^", "$", r"\b", r"\B", r"\A", "(?i)", "(?s)"])


def wider(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    groups = inner.map(lambda p: f"({p})") | inner.map(lambda p: f"(?:{p})")
    repeated = st.tuples(groups | LETTERS, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "{0}"])).map("".join)
    return groups | repeated | st.lists(inner, max_size=3).map("".join) | st.lists(inner, min_size=2, max_size=3).map(lambda p: f"({'|'.join(p)})")


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(LETTERS | PLACES.filter(lambda p: "?" not in p), wider, max_leaves=6),
    st.lists(st.text("ab.é1 \n😀A_", max_size=6), max_size=20),
    st.sampled_from(["", "(?i)", "(?s)"]),
)
def test_patterns_match_as_in_python(pattern: str, texts: list[str], flags: str) -> None:
    """Python's ``$`` also holds before a line's end at the end, where RE2's does not; its sets know Unicode but for re.ASCII; and
    an empty text has no \\B there."""
    expected = re.compile(flags + pattern.replace("$", r"\Z"), re.ASCII)
    found = automaton(flags + pattern)
    for text in ["", "a", "ab", *texts]:
        if ("(?i)" in flags and not text.isascii()) or (not text and r"\B" in pattern):
            continue
        assert found.matches(text.encode()) == (expected.fullmatch(text) is not None), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (r"[[:alpha:]]+", ["aZ"], ["", "a1", "é"]),
        (r"\pL+", ["aéЖ"], ["1", "a1"]),
        (r"\p{Lu}\P{Lu}*", ["Жx"], ["x"]),
        (r"\Qa.b\E", ["a.b"], ["axb"]),
        (r"\Qab\E+", ["ab", "abb"], ["abab", "a"]),
        (r"\Q\Ea|\Q*", ["a", "*"], ["", "a*"]),
        (r"(?:(?:){1000}){1000}a{0}(?:(?:(?:b{0}){1000}){1000}){1000}", [""], ["a", "b"]),
        (r"(?i)i", ["I"], ["ı"]),
        (r"(?i)[İı]", ["İ", "ı"], ["i", "I"]),
        ("(x" * 100 + "|y)*" * 100, ["", "x" * 100, "xyy"], ["a"]),
        (r"(?P<n>a)(?<m>b)", ["ab"], ["a"]),
        (r"(?i)straße|Ж", ["STRAßE", "straẞe", "ж"], ["strasse"]),
        (r"\x41\x{e9}\101", ["AéA"], ["AA"]),
        (r"a(?i:b)a", ["aba", "aBa"], ["Aba"]),
        (r"a{,2}", ["a{,2}"], ["aa", ""]),
        (r"(?U)a+?", ["aaa"], [""]),
        (r"a$\n", [], ["a", "a\n"]),
        (r"[^\x00-\x{10FFFE}]", ["􏿿"], ["a"]),
        (r"www\.[\w.-]+\.\bcom\b", ["www.a.com"], ["www.acom"]),
    ],
)
def test_patterns_of_re2(pattern: str, matching: list[str], other: list[str]) -> None:
    found = automaton(pattern)
    assert [text for text in (*matching, *other) if found.matches(text.encode())] == matching


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "references to groups"),
        ("(?=a)", "looking ahead"),
        ("(?<!a)b", "looking ahead or behind"),
        ("(a", "a \\) is missing"),
        ("a)", "a \\) too many"),
        ("*a", "nothing to repeat"),
        ("a**", "repetition of a repetition"),
        ("a{2}{3}", "repetition of a repetition"),
        ("[a", "ends too soon"),
        ("[a-", "ends too soon"),
        ("[b-a]", "no such ends"),
        ("a{2000}", "at most 1000"),
        ("((a{100}){100}){100}", "unfolds to more"),
        ("(a|b)*a(a|b){14}", "states"),
        (r"\p{Greek}", "scripts are not supported"),
        ("(?m)^a$", "ends of lines"),
        ("[[:foo:]]", "no class 'foo'"),
        ("\\", "ends too soon"),
        ("(" * 300 + ")" * 300, "within each other"),
    ],
)
def test_patterns_that_are_refused(pattern: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"RegexFullMatch.*{reason}"):
        tensorsmith.compile(model_of(node("RegexFullMatch", ["x"], ["y"], pattern=pattern), x=strings("a")), cache=False)


def test_matching() -> None:
    x = strings("a@b.com", "a@b.de", "@b.com", "é@b.com", "a@b.com\0", "").reshape(2, 3)
    want = np.array([[True, True, False], [False, False, False]])
    check(model_of(node("RegexFullMatch", ["x"], ["y"], pattern=r"[\w.]+@[a-z]+\.\w{2,3}"), x=x), {"x": x}, [want])


@few
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20)), st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_integers_as_texts_and_back(signed: list[int], unsigned: list[int]) -> None:
    x, u = np.array([-(2**63), 2**63 - 1, 0, -10, *signed]), np.array([0, 2**64 - 1, *unsigned], np.uint64)
    model = model_of(
        node("Cast", ["x"], ["y0"], to=TensorProto.STRING),
        node("Cast", ["u"], ["y1"], to=TensorProto.STRING),
        node("Cast", ["y0"], ["y2"], to=TensorProto.INT64),
        node("Cast", ["y1"], ["y3"], to=TensorProto.UINT64),
        x=x,
        u=u,
    )
    check(model, {"x": x, "u": u}, [vector(list(map(str, x.tolist()))), vector(list(map(str, u.tolist()))), x, u])


@few
@given(st.lists(st.floats(), max_size=9), st.lists(st.decimals(-(10**15), 10**15, allow_nan=False, places=3), max_size=9))
def test_texts_as_floats(numbers: list[float], decimals: list[object]) -> None:
    texts = [
        *map(str, decimals),
        *map(repr, numbers),
        "1E8",
        "+.5",
        " 7. ",
        "-iNf",
        "NAN",
        "infinity",
        "1e-400",
        "1e400",
        "0e99999999",
        "0" * 40 + "1",
    ]
    texts += ["9" * 30, "0." + "0" * 30 + "12345678901234567890123"]
    x = vector(texts)
    module = tensorsmith.compile(model_of(node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE), x=x), cache=False)
    want = np.array(list(map(float, texts)))
    normal = ~(np.abs(want) < 1e-300)
    np.testing.assert_allclose(module(x)[0][normal], want[normal], rtol=1e-15)
    np.testing.assert_array_equal(module(x)[0][: len(decimals)], want[: len(decimals)])


@pytest.mark.parametrize(
    ("text", "to"),
    [("", TensorProto.FLOAT), ("1,5", TensorProto.FLOAT), ("1e", TensorProto.DOUBLE), ("x", TensorProto.INT32), ("1e3", TensorProto.INT64)],
)
def test_texts_that_are_no_numbers_end_the_run(text: str, to: int) -> None:
    module = tensorsmith.compile(model_of(node("Cast", ["x"], ["y"], to=to), x=strings("a")), cache=False)
    assert module(strings("1", "-2"))[0].tolist() == [1, -2]
    with pytest.raises(UserError, match="1 of the 2 texts are numbers"):
        module(strings("1", text))


def test_casts_that_are_refused() -> None:
    for x, to, reason in ((np.zeros(1, np.float32), TensorProto.STRING, "floats as texts"), (strings("1"), TensorProto.BOOL, "truth values")):
        with pytest.raises(UserError, match=reason):
            tensorsmith.compile(model_of(node("Cast", ["x"], ["y"], to=to), x=x), cache=False)


@settings(few, max_examples=2)
@given(st.lists(TEXTS | st.text("a\0é😀", max_size=18), max_size=12))
def test_unique_texts(texts: list[str]) -> None:
    x = vector([*texts, "b" * 17, "b" * 16, "b" * 17 + "\0"])
    ordered = sorted(set(x.tolist()))
    inverse = np.array([ordered.index(text) for text in x], np.int64)
    first = np.array([x.tolist().index(text) for text in ordered], np.int64)
    wants = [vector(ordered), first, inverse, np.bincount(inverse).astype(np.int64)]
    check(model_of(node("Unique", ["x"], ["y0", "y1", "y2", "y3"]), x=x), {"x": x}, wants)
