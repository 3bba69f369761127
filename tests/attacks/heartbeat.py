"""heartbeat.py COMMAND…: asyncio with a heartbeat; starts the command and again whenever it is refused.

Prints `beat MS` (largest pause so far, at each second) and `ran CODE` at the end.
"""
import asyncio
import sys
import time

worst = 0.0


async def beat():
    global worst
    last, told = time.monotonic(), time.monotonic()
    while True:
        await asyncio.sleep(0.1)
        now = time.monotonic()
        worst = max(worst, now - last)
        last = now
        if now - told > 1:
            told = now
            print("beat %d" % (worst * 1000), flush=True)


async def run():
    task = asyncio.create_task(beat())
    while True:
        try:
            child = await asyncio.create_subprocess_exec(*sys.argv[1:])
            code = await child.wait()
            print("ran %d" % code, flush=True)
            break
        except PermissionError:
            print("refused", flush=True)
            await asyncio.sleep(12)
    task.cancel()


asyncio.run(run())
