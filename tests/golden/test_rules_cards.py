"""Every rule says what it means, and what it names exists."""

from __future__ import annotations

import re

import pytest

from vauban.attacks.catalog import ATTACKS
from vauban.defences.catalog import DEFENCES
from vauban.rules.catalog import RULES
from vauban.rules.standards import CATALOGUES, facts, name_of, standards

VERBS = {"attack", "harden", "seal", "verify", "audit"}


@pytest.mark.parametrize("id", RULES.ids())
def test_card_is_complete(id: str) -> None:
    card = RULES.load(id).card
    assert card.id == id
    assert card.sources
    assert len(card.remedies) >= 2
    for text in (card.name, card.meaning, card.measured, card.false_positives):
        assert len(text) > 15
    assert id not in ATTACKS, "a rule and an attack must not share an id: `vauban explain` takes both"


@pytest.mark.parametrize("id", RULES.ids())
def test_remedies_name_things_that_exist(id: str) -> None:
    for remedy in RULES.load(id).card.remedies:
        for verb, rest in re.findall(r"vauban ([a-z]+) ([^,;]*)", remedy):
            assert verb in VERBS
            for defence in re.findall(r"--with (\S+)", rest):
                assert defence in DEFENCES
            for named in re.findall(r"\b(?:evasion|poisoning|leakage|extraction|tampering)\.\w+", rest):
                assert named in ATTACKS


@pytest.mark.parametrize("id", RULES.ids())
def test_standards_of_each_rule_have_names(id: str) -> None:
    found = standards(RULES.load(id).card.standards)
    assert found.nist
    assert found.atlas
    assert found.owasp
    assert all(found.names[row] != row for row in [*found.nist, *found.atlas, *found.owasp])
    assert set(found.versions) == set(CATALOGUES)


def test_each_mapped_id_is_in_its_catalogue() -> None:
    for key, rows in facts()["mapping"].items():
        for catalogue in CATALOGUES:
            for row in rows[catalogue]:
                assert name_of(catalogue, row) != row, (key, row)


def test_each_catalogue_says_where_it_comes_from() -> None:
    for catalogue in CATALOGUES:
        entry = facts()["catalogues"][catalogue]
        assert all(entry[k] for k in ("title", "version", "source", "retrieved", "ids"))


def test_unknown_standard_is_refused() -> None:
    with pytest.raises(KeyError):
        standards("no.such.key")
