"""The shipped programs on the real model: that they do their job, not how well it writes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

import llmos
from llmos.agents.handle import OS
from llmos.syscalls.options import Sampling

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2_path", "minilm_path")]

MODEL = {"driver": "llama_cpp", "source": "smollm2", "context_tokens": 2048, "sequences": 16}
FACTS = {
    "tower.md": "# The tower\n\nAnna keeps the lamp of the lighthouse. Its light is red. "
    "The lighthouse was built in 1890 by fishermen of the village.",
    "bread.md": "# Bread\n\nBread is made of flour, water and yeast. The dough rests for an hour. "
    "Then it is baked for forty minutes in a hot oven.",
    "bees.md": "# Bees\n\nBees live in hives of up to sixty thousand. The queen lays the eggs. "
    "In winter they keep warm by shivering in a ball.",
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    files = tmp_path / "files"
    files.mkdir()
    for name, text in FACTS.items():
        (files / name).write_text(text)
    return str(files)


def run(home: Path, scenario: Callable[[OS], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with llmos.boot(home=home / "home", models={"smollm2": MODEL}) as kernel:
            return await scenario(kernel.os)

    return asyncio.run(main())


def test_the_tool_loop_works_out_products_with_the_calculator(tmp_path: Path) -> None:
    tasks = {"What is 17 * 23?": "391", "What is 123 times 456?": "56088", "Compute 2^10.": "1024"}

    async def scenario(os: OS) -> list[Any]:
        pids = [
            await os.spawn("react", task, tools=["calculator", "read_file"], max_steps=3)
            for task in tasks
        ]
        return await os.results(pids)

    for solved, product in zip(run(tmp_path, scenario), tasks.values(), strict=True):
        first = solved["steps"][0]
        assert (first["tool"], first["result"]) == ("calculator", product)
        assert product in solved["answer"]


class Town(BaseModel):
    name: str = Field(pattern="^[A-Z][a-z]{2,12}$")
    size: Literal["small", "large"]
    bridges: int = Field(ge=0, le=9)


def test_constrained_json_is_valid_a_hundred_times_of_a_hundred(tmp_path: Path) -> None:
    async def town(os: OS, seed: int) -> dict[str, Any]:
        messages = [llmos.system("You invent towns as JSON."), llmos.user("Invent a town.")]
        sampling = Sampling(temperature=1.2, seed=seed)
        made = await os.generate_as(Town, messages, sampling=sampling, max_tokens=48)
        return made.model_dump()

    async def scenario(os: OS) -> list[dict[str, Any]]:
        return await os.results([await os.spawn(town, seed) for seed in range(100)])

    towns = [Town.model_validate(made) for made in run(tmp_path, scenario)]
    assert len(towns) == 100
    assert len({town.name for town in towns}) > 10  # it was the model that chose


def test_a_question_is_answered_from_the_files_with_its_source(tmp_path: Path, folder: str) -> None:
    async def scenario(os: OS) -> list[Any]:
        first = await os.result(await os.spawn("documents", folder, "Who keeps the lamp?"))
        asked = await os.spawn("documents", folder, "How long is bread baked?")
        return [first, await os.result(asked)]

    lamp, bread = run(tmp_path, scenario)
    assert (lamp["index"]["unchanged"], bread["index"]["unchanged"]) == (0, 3)
    for value, source in ((lamp, "tower.md"), (bread, "bread.md")):
        (found,) = value["answers"]
        match = re.fullmatch(r"(.+) \[(\d+)\]", found["answer"])
        assert match
        cited = found["sources"][int(match[2]) - 1]
        assert Path(cited["source"]).name == source
        assert match[1] in cited["text"].replace("\n", " ")


def test_research_has_a_plan_and_citations_that_exist(tmp_path: Path, folder: str) -> None:
    async def scenario(os: OS) -> Any:
        pid = await os.spawn("research", "How do bees live in winter?", folder=folder, workers=4)
        return await os.result(pid)

    found = run(tmp_path, scenario)
    assert 2 <= len(found["plan"]) <= 4
    assert found["graph"]["failed"] == []
    numbers = {source["n"]: source for source in found["sources"]}
    cited = {int(number) for number in re.findall(r"\[(\d+)\]", found["answer"])}
    assert cited
    assert cited <= set(numbers)
    assert Path(numbers[1]["source"]).name == "bees.md"
    for source in found["sources"]:
        assert source["quote"] in source["text"].replace("\n", " ")


def test_a_debate_of_forks_ends_with_a_verdict(tmp_path: Path) -> None:
    async def scenario(os: OS) -> Any:
        debated = await os.result(await os.spawn("debate", "Cats are better than dogs.", rounds=2))
        return debated, (await os.stat()).programs["debater"]

    debated, debaters = run(tmp_path, scenario)
    assert [one["side"] for one in debated["arguments"]] == ["for", "against"] * 2
    assert all(
        one["text"].startswith(("I agree because", "I disagree because"))
        for one in debated["arguments"]
    )
    assert debated["winner"] in ("for", "against")
    assert debaters.tokens_cached > debaters.tokens_in / 3  # the forks inherited it


def test_files_are_summed_up_within_the_words(tmp_path: Path, folder: str) -> None:
    odd = Path(folder) / "odd.txt"
    odd.write_bytes(b"The caf\xe9 by the harbour opens at nine and sells bread and honey.")

    async def scenario(os: OS) -> Any:
        paths = [str(Path(folder) / name) for name in FACTS]
        return await os.result(await os.spawn("summarise", *paths, str(odd), words=40))

    summed = run(tmp_path, scenario)
    assert 3 <= len(summed["summary"].split()) <= 40
    assert [file["is_lossy"] for file in summed["files"]] == [False, False, False, True]


def test_the_demonstration_answers_with_sources(tmp_path: Path, folder: str) -> None:
    async def scenario(os: OS) -> Any:
        pid = await os.spawn("demo", folder, question="Who built the lighthouse?")
        return await os.result(pid)

    value = run(tmp_path, scenario)
    assert value["answer"]
    assert any(source.startswith("tower.md, ") for source in value["sources"])
    assert {one["status"] for one in value["agents"].values()} == {"ok"}
    assert value["agents"]["programmer"]["value"]["steps"][0]["tool"] == "python"
