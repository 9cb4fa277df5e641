"""Tables of our own in nftables: made by running ``nft``, kept as they were made, removed.

A table is compared as text with what it was when it was made, so that whatever somebody does to it is put right. It
outlives the agent. What is in one say ``gate`` and ``sourcecheck``.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Sequence

from services.common.log import get_logger
from services.nodeagent.nftrules import FAMILIES, Command, count_drops, delete_table, family_of

_log = get_logger("nft")
_COUNT = re.compile(r"packets (\d+) bytes \d+")


class NftError(RuntimeError):
    """``nft`` refused, or is not there; the message says which."""


class Kept:
    """One table of every family, in one network namespace. One caller at a time.

    ``needs``: the families without which it is not made; a kernel may lack the other.
    """

    def __init__(self, table: str, commands: Sequence[Command] = (), *, needs: Sequence[str] = FAMILIES) -> None:
        self.table = table
        self.problem = ""
        """Why it could not be made, when it was tried last."""
        self.restored = 0
        """Times somebody else had removed or changed it."""
        self._needs = needs
        self._wanted = list(commands)
        self._done: list[Command] | None = None
        """What was wanted when it was made last."""
        self._texts: list[str] = []
        """The tables as nft told of them then, and how many rules that drop each must have."""
        self._drops: list[int] = []
        self._counted = 0
        self._counted_before = 0

    @property
    def packets(self) -> int:
        """By the table's counters, as of the last look; those of tables that somebody removed included."""
        return self._counted_before + self._counted

    def want(self, commands: Sequence[Command]) -> bool:
        """What the table is to be from the next ``check`` on; whether that is news."""
        is_news = list(commands) != self._wanted
        self._wanted = list(commands)
        return is_news

    async def put_up(self) -> None:
        """Make the table, or take over the one an earlier agent left. NftError if nft refuses."""
        wanted = made = self._wanted
        try:
            await asyncio.to_thread(run, made)
        except NftError as error:
            made = [one for one in wanted if family_of(one) in self._needs]
            if made == wanted:
                raise
            await asyncio.to_thread(run, made)
            _log.warning("a family was left out", table=self.table, problem=str(error))
        self._drops = [count_drops(made, family) for family in FAMILIES]
        self._texts = await self._look()
        self._done = wanted

    async def check(self) -> None:
        """Make the table where it is not what it is to be; ``problem`` tells of a failure."""
        try:
            await self._check()
            self.problem = ""
        except NftError as error:
            if str(error) != self.problem:
                _log.error("table not made", table=self.table, problem=str(error))
            self.problem = str(error)

    async def _check(self) -> None:
        if not self._wanted:
            return
        is_known = self._done == self._wanted
        if is_known and await self._look() == self._texts and self._is_whole():
            return
        await self.put_up()
        if is_known:
            self.restored += 1
            _log.warning("a table was removed or changed by somebody else, put back", table=self.table)

    def _is_whole(self) -> bool:
        """Whether each table drops as often as it must, whatever it was when it was looked at first."""
        return [text.count("drop") for text in self._texts] == self._drops

    async def _look(self) -> list[str]:
        """The text of each family's table without what was counted, which is noted."""
        texts = await asyncio.to_thread(list_tables, self.table)
        counted = sum(int(one) for text in texts for one in _COUNT.findall(text))
        if counted < self._counted:  # the table is another one
            self._counted_before += self._counted
        self._counted = counted
        return [_COUNT.sub("packets", text) for text in texts]


def run(commands: Sequence[Command]) -> None:
    """All of them or none. NftError if nft refuses.

    A pipe, not the loop's socket pair: nft opens /dev/stdin by name, which a socket refuses.
    """
    done = _nft("-j", "-f", "-", given=json.dumps({"nftables": list(commands)}))
    if done.returncode:
        raise NftError(done.stderr.strip() or f"nft ended with {done.returncode}")


def list_tables(table: str) -> list[str]:
    """The text of each family's table of this name; empty where there is none."""
    return [_list_table(family, table) for family in FAMILIES]


def _list_table(family: str, table: str) -> str:
    done = _nft("list", "table", family, table)
    return done.stdout if done.returncode == 0 else ""


def _nft(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["nft", *arguments], input=given, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NftError(f"nft: {error.strerror}") from error


def remove(table: str) -> None:
    """No trace of the table; NftError if nft refuses. Where there is no nft there is no table."""
    if shutil.which("nft") is None:
        return
    found = [family for family in FAMILIES if _list_table(family, table)]
    if found:
        run([command for family in found for command in delete_table(family, table)])
