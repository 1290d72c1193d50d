"""Bodies of requests: limits while they arrive, and forms, whole and damaged."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.service import form

from organ_infer.serve.bodies import BodyMemory, files_of, read_body
from organ_infer.serve.errors import RequestError
from organ_infer.serve.limits import ServiceLimits

LIMITS = ServiceLimits(request_bytes=100, files=3, body_seconds=0.2)
FORM = "multipart/form-data; boundary=b0undary"


def parsed(body, content_type=FORM, name=None, limits=LIMITS):
    return files_of(body, content_type, name, limits)


def refused(*arguments, **options):
    with pytest.raises(RequestError) as error:
        parsed(*arguments, **options)
    return error.value.status, str(error.value)


# Forms.


@pytest.mark.parametrize(
    "files",
    [
        [("a.png", b"1")],
        [("a.png", b"1"), ("a.png", b"2"), ("b", b"")],
        [("lines", b"\r\n\r\n--b0undar\r\n"), ("n", b"\n--b0undary")],
        [("böx é.png", bytes(range(256)))],
    ],
)
def test_the_files_of_a_form_are_what_was_sent(files):
    assert parsed(form(*files)[0]) == files


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_any_content_without_the_boundary_survives(contents):
    contents = [content.replace(b"b0undary", b"") for content in contents]
    files = [(f"{i}", content) for i, content in enumerate(contents)]
    assert parsed(form(*files)[0]) == files


@given(st.binary(max_size=200))
def test_damaged_forms_are_refused_or_read_and_nothing_else(noise):
    for body in (noise, b"--b0undary" + noise, form(("a", b"1"))[0][: len(noise)] + noise):
        try:
            assert all(isinstance(name, str) for name, _ in parsed(body))
        except RequestError as e:
            assert e.status in (400, 413)


@pytest.mark.parametrize("cut", range(1, 100))
def test_a_form_that_ends_early_is_refused(cut):
    body = form(("a.png", b"0123456789"))[0].removesuffix(b"--\r\n")
    status, text = refused(body[:-cut])
    assert status == 400 and ("ends before its last boundary" in text or "its boundary" in text)


@pytest.mark.parametrize(
    "header, name",
    [
        (b'form-data; name="f"; filename="a.png"', "a.png"),
        (b"form-data; name=f; filename=a.png", "a.png"),
        (b'form-data; FILENAME="a;b.png"; name="f"', "a;b.png"),
        (rb'form-data; name="f"; filename="a\"b\\c.png"', 'a"b\\c.png'),
        (b'form-data; name="f"; filename="caf\xe9.png"', "caf\udce9.png"),
        (b"form-data; filename=plain; filename*=UTF-8''other", "plain"),
        (b'form-data; name="f"; filename=""', "upload"),
        (b'form-data;filename="' + b"x" * 3000 + b'"', None),
    ],
)
def test_names_of_files(header, name):
    body = b"--b0undary\r\ncontent-DISPOSITION : %s\r\n\r\n1\r\n--b0undary--" % header
    ((found, content),) = parsed(body)
    assert content == b"1"
    assert found == name if name else len(found) == 1000 and found.startswith("xxx")


def test_padding_preamble_and_epilogue_are_not_files():
    body = (
        b'preamble\r\n--b0undary \t\r\nContent-Disposition: form-data; filename="a"\r\n\r\n1'
        b"\r\n--b0undary--\r\nepilogue"
    )
    assert parsed(body) == [("a", b"1")]


@pytest.mark.parametrize(
    "content_type",
    [
        "MULTIPART/Form-Data; charset=x; BOUNDARY=b0undary",
        'multipart/form-data; boundary="b0undary"',
        "multipart/form-data;boundary=b0undary",
    ],
)
def test_spellings_of_the_content_type(content_type):
    assert parsed(form(("a", b"1"))[0], content_type) == [("a", b"1")]


@pytest.mark.parametrize(
    "body, content_type, status, text",
    [
        (b"x", "multipart/mixed; boundary=b", 415, "only multipart/form-data is read"),
        (b"x", "multipart/form-data", 400, "the form has no boundary"),
        (b"x", 'multipart/form-data; boundary=""', 400, "the form has no boundary"),
        (b"x", f"multipart/form-data; boundary={'b' * 300}", 400, "the form has no boundary"),
        (b"x", FORM, 400, "the form does not have its boundary"),
        (b"--b0undary--\r\n", FORM, 400, "the form is empty"),
        (b"--b0undary\r\n\r\n--b0undary--", FORM, 400, "a part of the form is damaged"),
        (b"--b0undary\r\nno headers\r\n--b0undary--", FORM, 400, "a part of the form is damaged"),
        (b"--b0undaryX\r\n\r\n1\r\n--b0undary--", FORM, 400, "a part of the form is damaged"),
        (
            b"--b0undary\r\nX: %s\r\n\r\n1\r\n--b0undary--" % (b"x" * 9000),
            FORM,
            400,
            "a part of the form is damaged",
        ),
        (
            b'--b0undary\r\nContent-Disposition: form-data; name="top"\r\n\r\n1\r\n--b0undary--',
            FORM,
            400,
            "the field 'top' is not a file",
        ),
    ],
)
def test_what_is_no_form_of_files_is_one_line(body, content_type, status, text):
    found, message = refused(body, content_type)
    assert found == status and message.startswith(text) and "; " in message


def test_files_are_counted():
    three = [(f"{i}", b"1") for i in range(3)]
    assert len(parsed(form(*three)[0])) == 3
    assert refused(form(*three, ("4", b"1"))[0]) == (
        413,
        "more than 3 files; send fewer per request, or raise --files-per-request",
    )
    # a million boundaries are not a million objects
    assert refused(b"--b0undary\r\n" * 1_000_000)[0] == 413


@pytest.mark.parametrize("content_type", ["", "image/png", "text/html", "application/json", "x"])
def test_any_other_body_is_one_file(content_type):
    assert parsed(b"1", content_type) == [("upload", b"1")]
    assert parsed(b"1", content_type, "a.png") == [("a.png", b"1")]
    assert len(parsed(b"1", content_type, "x" * 5000)[0][0]) == 1000


# Reading.


async def pieces(*chunks, hang=False):
    for chunk in chunks:
        yield chunk
    if hang:
        await asyncio.sleep(60)


def read(*chunks, length=None, memory=None, hang=False):
    memory = memory or BodyMemory(1000)
    with memory.reserve() as reservation:
        return asyncio.run(read_body(pieces(*chunks, hang=hang), length, LIMITS, reservation))


def test_a_body_is_read_whole():
    assert read(b"ab", b"", b"c" * 98) == b"ab" + b"c" * 98


@pytest.mark.parametrize("length", ["101", "9" * 5000, " 101 "])
def test_a_length_above_the_limit_is_refused_before_the_body(length):
    async def never():
        pytest.fail("the body was read")
        yield b""

    with BodyMemory(1000).reserve() as reservation, pytest.raises(RequestError) as error:
        asyncio.run(read_body(never(), length, LIMITS, reservation))
    assert error.value.status == 413 and "more than 100 bytes" in str(error.value)


def test_a_body_above_the_limit_is_refused_while_it_arrives():
    taken = []

    async def endless():
        while True:
            taken.append(1)
            yield b"x" * 30

    with BodyMemory(1000).reserve() as reservation, pytest.raises(RequestError) as error:
        asyncio.run(read_body(endless(), None, LIMITS, reservation))
    assert error.value.status == 413 and len(taken) == 4


@pytest.mark.parametrize(
    "options, status, text",
    [
        ({"hang": True}, 408, "the body did not arrive in 0.2 s"),
        ({}, 400, "the body is empty"),
        ({"length": "0"}, 400, "the body is empty"),
    ],
)
def test_a_late_or_empty_body(options, status, text):
    with pytest.raises(RequestError, match=text) as error:
        read(**options)
    assert error.value.status == status


def test_the_memory_of_all_bodies_is_bounded_and_released():
    memory = BodyMemory(120)
    with memory.reserve() as other:
        other.add(70)
        with pytest.raises(RequestError, match="too many large requests") as error:
            read(b"x" * 40, b"x" * 40, memory=memory)
        assert error.value.status == 503 and memory.bytes == 70
    assert memory.bytes == 0
    assert read(b"x" * 80, memory=memory) == b"x" * 80 and memory.bytes == 0
