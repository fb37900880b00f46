"""A signature is that of these bytes, this tenant and this batch: whatever else is refused."""

import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes

from farm.errors import SignatureInvalid
from farm.schemas import InpaintJob, dump_line
from farm.signing import SIGNATURE_BYTES, sign, signed_line, split_line, verify

KEY, OTHER = SecretBytes(b"k" * 32), SecretBytes(b"o" * 32)
JOB = InpaintJob(image="s3://photos/a.png", custom_id="a", prompt='x","signature":"' + "0" * 64 + '"}')
PLACE = {"tenant": "t", "batch_id": "b"}

objects = st.dictionaries(st.text(), st.text() | st.integers() | st.dictionaries(st.text(), st.text()), min_size=1)
lines = st.builds(lambda value, end: json.dumps(value).encode() + end, objects, st.sampled_from([b"", b"\n"]))


def check(line: bytes, keys=(KEY,), **place) -> None:
    unsigned, signature = split_line(line)
    verify(unsigned, signature, keys=keys, **{**PLACE, **place})


@given(lines)
def test_what_was_signed_comes_back_byte_for_byte(line):
    signed = signed_line(line, key=KEY, **PLACE)
    assert len(signed) == len(line) + SIGNATURE_BYTES
    assert split_line(signed) == (line, sign(line, key=KEY, **PLACE))
    assert json.loads(signed) == {**json.loads(line), "signature": sign(line, key=KEY, **PLACE)}
    check(signed)


@given(lines)
def test_an_unsigned_line_stays_as_it_is(line):
    assert split_line(line) == (line, None)
    with pytest.raises(SignatureInvalid, match="not signed"):
        check(line)


@given(st.data())
def test_any_flipped_bit_is_caught(data):
    signed = bytearray(signed_line(dump_line(JOB), key=KEY, **PLACE))
    place = data.draw(st.integers(0, len(signed) - 1))
    signed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SignatureInvalid):
        check(bytes(signed))


@given(st.data())
def test_any_byte_put_in_or_taken_out_is_caught(data):
    signed = signed_line(dump_line(JOB), key=KEY, **PLACE)
    place = data.draw(st.integers(0, len(signed) - 2))  # the newline at the end only separates
    changed = signed[:place] + data.draw(st.sampled_from([b"", b"\0", b" ", b"}", b'"'])) + signed[place + 1 :]
    if changed != signed:
        with pytest.raises(SignatureInvalid):
            check(changed)


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_line_of_another_tenant_or_batch_is_caught(tenant, batch):
    signed = signed_line(dump_line(JOB), key=KEY, **PLACE)
    if (tenant, batch) != ("t", "b"):
        with pytest.raises(SignatureInvalid, match="signature is not"):
            check(signed, tenant=tenant, batch_id=batch)


def test_tenant_and_batch_do_not_run_together():
    signed = signed_line(b'{"a":1}', tenant="ab", batch_id="c", key=KEY)
    with pytest.raises(SignatureInvalid):
        check(signed, tenant="a", batch_id="bc")


def test_the_formula_is_the_documented_one():
    expected = hmac.new(b"k" * 32, b'inpaint-farm spec v1\0t\0b\0{"a":1}', "sha256").hexdigest()
    assert sign(b'{"a":1}\n', key=KEY, **PLACE) == sign(b'{"a":1}', key=KEY, **PLACE) == expected


def test_keys_rotate():
    old, new = (signed_line(dump_line(JOB), key=key, **PLACE) for key in (OTHER, KEY))
    check(old, keys=(KEY, OTHER))
    check(new, keys=(KEY, OTHER))
    with pytest.raises(SignatureInvalid):
        check(old, keys=(KEY,))
    with pytest.raises(SignatureInvalid):
        check(new, keys=())


def test_a_second_signature_does_not_hide_the_first():
    twice = signed_line(signed_line(dump_line(JOB), key=OTHER, **PLACE), key=KEY, **PLACE)
    check(twice)
    assert b'"signature"' in split_line(twice)[0]  # which is no field of a job


def test_a_signature_within_a_value_is_none():
    nested = dump_line(JOB.model_copy(update={"metadata": {"signature": "0" * 64}}))
    assert split_line(nested) == (nested, None)


@pytest.mark.parametrize("line", [b"{}", b"", b"[1]", b'{"a":1', b"{}\n"])
def test_only_objects_are_signed(line):
    with pytest.raises(ValueError, match="JSON object"):
        signed_line(line, key=KEY, **PLACE)
