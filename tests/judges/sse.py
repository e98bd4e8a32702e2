"""Follows streams of events with `httpx-sse`, which leaves reconnecting to its caller.

Standard input and output are those of `sse.mjs`.
"""

import asyncio
import json
import sys

import httpx
from httpx_sse import aconnect_sse

# Shorter than the server's `retry`, for more reconnects.
PAUSE = 0.03
# Readers that connect at the same time.
READERS = 64


async def follow(client, limit, reader):
    read = {"events": [], "gone": [], "controls": {}, "opened": 0}
    url, last = reader["url"], None
    async with limit:
        while True:
            headers = {} if last is None else {"Last-Event-ID": last}
            try:
                async with aconnect_sse(client, "GET", url, headers=headers) as source:
                    if source.response.status_code == 410:
                        problem = json.loads(await source.response.aread())
                        oldest = problem["oldest"]
                        gone = {"events": len(read["events"]), "code": problem["code"], "oldest": oldest}
                        read["gone"].append(gone)
                        last = None
                        if reader.get("reset"):
                            await client.post(reader["reset"], json={"to": oldest})
                        else:
                            url = str(httpx.URL(url).copy_set_param("after", oldest))
                        continue
                    source.response.raise_for_status()
                    read["opened"] += 1
                    async for block in source.aiter_sse():
                        last = block.id or last
                        if block.event.startswith("balto."):
                            name = block.event.removeprefix("balto.")
                            read["controls"][name] = read["controls"].get(name, 0) + 1
                        elif block.data:
                            event = json.loads(block.data)
                            read["events"].append({"id": block.id, "event": event})
                            if event["type"] == "all.last":
                                return read
            except httpx.TransportError:
                pass
            await asyncio.sleep(PAUSE)


async def main():
    readers = json.load(sys.stdin)["readers"]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    limit = asyncio.Semaphore(READERS)
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=None, limits=limits) as client:
        for read in await asyncio.gather(*(follow(client, limit, reader) for reader in readers)):
            print(json.dumps(read))


asyncio.run(main())
