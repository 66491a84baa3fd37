"""Consolidation's program: which sentences are facts, how they are cut, what replaces what."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import llmos
from llmos.agents.consolidate import PROFILE, cuts
from llmos.kernel.kernel import Kernel
from llmos.syscalls.rights import Quota

REPLIES = {
    "I live in Oslo.": "I | live in | Oslo",
    "I live in Bergen.": "I | live in | Bergen",
    "My sister is called Anna.": "My sister | is called | Anna",
}


def said(*texts: str, first: int = 1) -> list[dict[str, Any]]:
    return [{"id": n, "text": text, "at": 1_000.0 + n} for n, text in enumerate(texts, first)]


async def consolidated(kernel: Kernel, notes: list[dict[str, Any]], **options: Any) -> Any:
    pid = await kernel.os.spawn("consolidate", namespace="user-me", notes=notes, **options)
    return await kernel.os.result(pid)


@pytest.mark.parametrize(
    ("sentence", "cut"),
    [
        ("My sister Anna lives in Oslo.", "My sister Anna | lives in | Oslo"),
        ("I am allergic to peanuts.", "I | am allergic to | peanuts"),
        ("My favourite colour is green.", "My favourite colour | is | green"),
        ("The project is due in spring.", "The project | is due in | spring"),
    ],
)
def test_the_right_cut_is_among_few(sentence: str, cut: str) -> None:
    found = list(cuts(sentence))
    assert cut in found
    assert len(found) <= 6
    assert all(one.replace(" | ", " ") == sentence.rstrip(".") for one in found)


def test_a_sentence_that_cannot_be_cut_has_no_choices() -> None:
    assert list(cuts("Yes indeed.")) == []


def test_what_lasts_becomes_facts_and_what_passes_does_not(boot_agents: Any) -> None:
    async def scenario() -> None:
        async with boot_agents(REPLIES) as kernel:
            value = await consolidated(
                kernel, said("Thank you, that helps. I live in Oslo.", "My sister is called Anna.")
            )
            assert value == {
                "sentences": 2,
                "facts": 2,
                "duplicates": 0,
                "superseded": 0,
                "is_complete": True,
            }
            (fact,) = await kernel.os.related("user", namespaces=["user-me"])
            assert (fact.relation, fact.object, fact.text) == ("live in", "Oslo", "I live in Oslo.")
            (fact,) = await kernel.os.related("user's sister", namespaces=["user-me"])
            assert fact.object == "Anna"

    asyncio.run(scenario())


def test_a_later_fact_supersedes_the_older_and_the_same_again_is_a_duplicate(
    boot_agents: Any,
) -> None:
    async def scenario() -> None:
        async with boot_agents(REPLIES) as kernel:
            await consolidated(kernel, said("I live in Oslo."))
            again = await consolidated(kernel, said("I live in Oslo.", first=5))
            assert (again["facts"], again["duplicates"]) == (0, 1)
            later = await consolidated(kernel, said("I live in Bergen.", first=9))
            assert (later["facts"], later["superseded"]) == (1, 1)
            hits = await kernel.os.retrieve("live", namespaces=["user-me"], kinds=["semantic"])
            texts = [hit.text for hit in hits]
            assert "I live in Bergen." in texts
            assert "I live in Oslo." not in texts
            (profile,) = [hit for hit in hits if hit.source == PROFILE]
            assert profile.text == "The user said:\n- I live in Bergen."

    asyncio.run(scenario())


def test_people_who_share_a_namespace_have_profiles_of_their_own(boot_agents: Any) -> None:
    async def scenario() -> None:
        async with boot_agents(REPLIES) as kernel:
            await consolidated(kernel, said("I live in Oslo."), whose="ann")
            await consolidated(kernel, said("My sister is called Anna.", first=3), whose="bob")
            hits = await kernel.os.retrieve("said", k=9, namespaces=["user-me"])
            profiles = {hit.source: hit.text for hit in hits if hit.source is not None}
            assert profiles == {
                f"{PROFILE}:ann": "The user said:\n- I live in Oslo.",
                f"{PROFILE}:bob": "The user said:\n- My sister is called Anna.",
            }

    asyncio.run(scenario())


def test_out_of_budget_what_was_found_is_kept_and_it_says_that_it_is_not_complete(
    boot_agents: Any,
) -> None:
    async def scenario() -> None:
        async with boot_agents(REPLIES) as kernel:
            notes = said("I live in Oslo.", "My sister Anna lives in Rome.")
            value = await consolidated(kernel, notes, quota=Quota(tokens_out=0))
            assert (value["sentences"], value["facts"], value["is_complete"]) == (2, 1, False)
            (fact,) = await kernel.os.related("user", namespaces=["user-me"])
            assert fact.object == "Oslo"

    asyncio.run(scenario())


SAID = {
    "I moved to Lisbon last year.": ("user", "moved to", "Lisbon last year"),
    "My favourite food is sushi.": ("user's favourite food", "is", "sushi"),
    "I am allergic to peanuts.": ("user", "am allergic to", "peanuts"),
    "My sister Anna lives in Oslo.": ("user's sister Anna", "lives in", "Oslo"),
    "I have two cats and a parrot.": ("user", "have", "two cats and a parrot"),
    "My son plays the trumpet.": ("user's son", "plays", "the trumpet"),
}
PASSING = ("Thanks a lot for your help.", "Can you make it shorter.", "Give me three ideas.")


@pytest.mark.model
def test_the_real_models_find_what_lasts_and_cut_most_of_it_right(
    smollm2_path: Path, minilm_path: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with llmos.boot(home=tmp_path) as kernel:
            value = await consolidated(kernel, said(*SAID, *PASSING))
            assert value["is_complete"]
            assert len(SAID) - 1 <= value["sentences"] <= len(SAID) + 1
            hits = await kernel.os.retrieve(
                "user", k=20, namespaces=["user-me"], where={"said_in": {"$exists": True}}
            )
            assert {hit.text for hit in hits} <= {*SAID, *PASSING}
            told: set[tuple[str, str, str]] = set()
            for subject in {fact[0] for fact in SAID.values()}:
                for one in await kernel.os.related(subject, namespaces=["user-me"]):
                    told.add((one.subject, one.relation, one.object))
            assert len(told & set(SAID.values())) >= 4

    asyncio.run(scenario())
