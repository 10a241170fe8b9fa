"""A receptionist for three restaurants, and the workers that she asks."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipecat_jobs import (
    BaseWorker,
    JobToolError,
    LLMWorker,
    cancel_job,
    job,
    job_steers,
    job_tool,
    list_jobs,
)

TABLE = "bookings (number INTEGER PRIMARY KEY, guest, time, place, UNIQUE (time, place))"

SAUCE = "Is the duck with or without sauce?"


@dataclass
class Booking:
    """A table that a guest has booked."""

    number: int
    guest: str
    time: str
    table: str


class Bookings(BaseWorker):
    """Keeps the bookings of all restaurants in a SQLite database."""

    def __init__(self, path: Path):
        super().__init__("bookings")
        self._path = path

    @job
    async def book_table(self, guest: str, time: str, table: str) -> Booking:
        """Book a table that find_table has found. A time is written like 20:00."""
        insert = "INSERT INTO bookings (guest, time, place) VALUES (?, ?, ?) RETURNING *"
        try:
            [booking] = await asyncio.to_thread(self._execute, insert, guest, time, table)
        except sqlite3.IntegrityError as error:
            raise JobToolError(f"{table} has just been booked, find another table") from error
        return booking

    @job
    async def find_bookings(self, guest: str) -> list[Booking]:
        """Find the bookings of a guest."""
        select = "SELECT * FROM bookings WHERE guest = ?"
        return await asyncio.to_thread(self._execute, select, guest)

    @job
    async def find_booked_tables(self, time: str) -> list[str]:
        """Find the tables that are booked at a time."""
        select = "SELECT * FROM bookings WHERE time = ?"
        return [booking.table for booking in await asyncio.to_thread(self._execute, select, time)]

    def _execute(self, statement: str, *values: str) -> list[Booking]:
        with closing(sqlite3.connect(self._path)) as database, database:
            database.execute(f"CREATE TABLE IF NOT EXISTS {TABLE}")
            return [Booking(*row) for row in database.execute(statement, values)]


class Branch(BaseWorker):
    """One of the restaurants, which knows its tables and takes its time to look."""

    def __init__(self, name: str, seats: dict[str, int], *, takes: float = 0.0):
        super().__init__(name)
        self._seats = seats
        self._takes = takes

    @job
    async def find_table(self, guests: int, time: str) -> str:
        """Find a free table for so many guests. A time is written like 20:00."""
        await asyncio.sleep(self._takes)
        booked = await self.job("bookings", Bookings.find_booked_tables.request(time=time))
        for table, seats in self._seats.items():
            if seats >= guests and table not in booked:
                return table
        raise JobToolError(f"no free table for {guests} at {time}")


class Bar(BaseWorker):
    """Serves drinks at once."""

    @job
    async def bring_drink(self, table: str, drink: str) -> str:
        """Have a drink brought to a table."""
        return f"{drink} is on its way to {table}"


class Kitchen(BaseWorker):
    """Cooks one order at a time for each table, and for any number of tables at once."""

    def __init__(self, name: str, *, pace: float = 1.0):
        super().__init__(name)
        self._pace = pace

    @job
    async def find_cooking_time(self, dish: str) -> str:
        """Ask the kitchen how long a dish takes."""
        await asyncio.sleep(2 * self._pace)
        return f"the {dish} takes {40 if dish == 'duck' else 20} minutes"

    @job(key="table", on_busy="steer")
    async def order(self, table: str, dishes: list[str]) -> dict[str, str]:
        """Order dishes for a table. While its order is cooked, they are added to that order."""
        steers, served = job_steers(), list[str]()
        for dish in dishes:
            if dish == "duck":
                sauce = await self.ask_requester(SAUCE, Literal["with sauce", "without sauce"])
                dish = f"duck {sauce}"
            await asyncio.sleep(self._pace)
            served.append(dish)
            for steer in steers.take_waiting():
                dishes.extend(steer.data["dishes"])
        return {"served": " and ".join(served), "table": table}


class Receptionist(LLMWorker):
    """Talks with the guests."""

    find_table = job_tool(
        "north", "harbour", "castle", job=Branch.find_table, need="first", timeout=10
    )
    book_table = job_tool("bookings", job=Bookings.book_table, timeout=5)
    find_bookings = job_tool("bookings", job=Bookings.find_bookings, timeout=5)
    bring_drink = job_tool("bar", job=Bar.bring_drink, timeout=5)
    # In the background: the guest goes on talking, and is told the result in a silence.
    find_cooking_time = job_tool(
        "kitchen", job=Kitchen.find_cooking_time, cancel_on_interruption=False
    )
    order = job_tool("kitchen", job=Kitchen.order, cancel_on_interruption=False, timeout=600)

    def build_tools(self) -> list[Any]:
        """Offer the tools above, and those that list and cancel the orders."""
        return [*super().build_tools(), list_jobs, cancel_job]
