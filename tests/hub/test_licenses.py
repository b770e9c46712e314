"""What is said of a licence is what its id tells, and nothing more."""

import pytest

from qlora_space.hub.licenses import terms_of


@pytest.mark.parametrize(
    "license",
    ["apache-2.0", "MIT", "bsd", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cdla-permissive-2.0"],
)
def test_licences_that_allow_it(license: str) -> None:
    found = terms_of(license)
    assert found.kind == "allows"
    assert found.text.endswith(f"allows it: {license.lower()}")


@pytest.mark.parametrize(
    ("license", "words"),
    [
        ("llama3.1", "(llama3.1) has conditions"),
        ("gemma", "(gemma) has conditions"),
        ("openrail++", "(openrail++) has conditions"),
        ("cc-by-sa-4.0", "has conditions"),
        ("gpl-3.0", "has conditions"),
        ("cc-by-nc-4.0", "no commercial use"),
        ("cc-by-nc-sa-4.0", "no commercial use"),
        ("apple-amlr-noncommercial", "no commercial use"),
        ("cc-by-nd-4.0", "no changed versions"),
        ("cc-by-nc-nd-4.0", "no changed versions"),
        ("other", "(of its own) has conditions"),
        ("mit-nothing-like-it", "has conditions"),
    ],
)
def test_licences_that_a_person_must_read(license: str, words: str) -> None:
    found = terms_of(license)
    assert found.kind == "asks"
    assert words in found.text


@pytest.mark.parametrize("license", ["", " ", "unknown"])
def test_no_licence_is_not_leave_to_publish(license: str) -> None:
    assert terms_of(license).kind == "unknown"
    assert "states no licence" in terms_of(license).text
