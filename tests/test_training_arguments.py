"""The types of the training commands' arguments: what they take, and what they say of the rest."""

import argparse
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.arguments import device_name, natural, positive


@given(st.integers(1, 10**9))
def test_numbers_from_1_on_are_taken_as_they_are(number):
    assert positive(str(number)) == natural(str(number)) == number


@given(st.integers(max_value=-1))
def test_negative_numbers_are_refused(number):
    for kind, least in ((positive, 1), (natural, 0)):
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"expected {least} or more, found {number}$"
        ):
            kind(str(number))


def test_zero_is_natural_and_not_positive():
    assert natural("0") == 0
    with pytest.raises(argparse.ArgumentTypeError, match="expected 1 or more, found 0"):
        positive("0")


@pytest.mark.parametrize("text", ["", "x", "1.5", "1e3"])
def test_what_is_no_whole_number_is_a_value_error(text):
    """argparse names the argument then."""
    for kind in (positive, natural):
        with pytest.raises(ValueError):
            kind(text)


@pytest.mark.parametrize("text", ["auto", "cpu", "cuda", "cuda:0", "cuda:7", "cuda:1023"])
def test_devices_are_taken_as_they_are(text):
    assert device_name(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:12345", "cpu:0", "cuda 0", "xcpu"],
)
def test_other_devices_are_refused_with_those_there_are(text):
    expected = re.escape(f"expected auto, cpu, cuda or cuda:N, found {text!r}")
    with pytest.raises(argparse.ArgumentTypeError, match=expected):
        device_name(text)
