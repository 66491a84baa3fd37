"""Where one generation spends its time: prints the trace of a single call, span by span.

Run: .venv/bin/python examples/trace_one_call.py
"""

from __future__ import annotations

import asyncio

import llmos


async def ask(os: llmos.OS, question: str) -> str:
    return (await os.generate(question, max_tokens=12)).text


async def main() -> None:
    async with llmos.boot() as kernel:
        await kernel.os.generate("Hello.", max_tokens=1)  # the device opens, the template is read
        pid = await kernel.os.spawn(ask, "What is the capital of France?")
        answer = await kernel.os.result(pid)
        events = [event for event in (await kernel.os.trace()).events if event.phase == "X"]
    start = min(event.ts_us for event in events if event.pid == pid)
    print(f"answer: {answer!r}\n")
    print(f"{'start ms':>9} {'ms':>9}  {'who':<14} what")
    for event in sorted(events, key=lambda event: (event.ts_us, -event.dur_us)):
        if event.ts_us + event.dur_us < start or event.name == "Wait":
            continue
        who = f"process {pid}" if event.pid == pid else event.track
        detail = ", ".join(f"{key} {value}" for key, value in event.args.items())
        begun, took = (event.ts_us - start) / 1000, event.dur_us / 1000
        print(f"{begun:9.2f} {took:9.2f}  {who:<14} {event.category}/{event.name}  {detail}")


if __name__ == "__main__":
    asyncio.run(main())
