"""A language model from nothing: a tokenizer and a small decoder learn from real text.

The text is the documentation inside Python's own standard library, which comes with the interpreter
under the PSF licence. About a minute.
Run: .venv/bin/python examples/pretrain.py [STEPS]
"""

import ast
import asyncio
import sys
import sysconfig
import tempfile
from pathlib import Path

import llmos

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60


def docstrings() -> list[dict[str, str]]:
    """What the modules at the top of the standard library say of themselves."""
    texts: list[dict[str, str]] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                said = ast.get_docstring(node)
                if said and len(said) > 200:
                    texts.append({"text": f"{node.__class__.__name__}: {said}"})
    return texts


async def main() -> None:
    texts = docstrings()
    # A home of its own, so that it can be run again: the name of a version is given once.
    with tempfile.TemporaryDirectory(prefix="llmos-") as home:
        async with llmos.boot(home=Path(home)) as kernel:
            job = await kernel.os.finetune(
                texts,
                "docstrings",
                objective="pretrain",
                method="full",
                scratch={"vocabulary": 1024, "width": 128, "layers": 2, "heads": 4},
                epochs=100,
                max_steps=STEPS,
                batch_size=8,
                max_length_tokens=128,
                eval_share=0.05,
            )
            trained = await kernel.os.result(job)
            version, tokens, seconds = trained["version"], trained["tokens"], trained["seconds"]
            print(f"{len(texts)} texts, {tokens} tokens in {seconds:.0f} s")
            before, after = trained["eval_loss_before"], trained["eval_loss_after"]
            print(f"loss {before:.2f} -> {after:.2f} on texts that it did not see")
            size_mb = version["size_bytes"] / 1e6
            print(f"version {version['name']}: {version['kind']}, {size_mb:.1f} MB")


asyncio.run(main())
