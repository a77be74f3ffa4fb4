"""Databases that are rewritten in small pages while others read them: databases.py make|rewrite|check COUNT DIRECTORY"""

import os
import sqlite3
import sys

ROWS = 150
READERS = 2
UPDATES = 5
ADDED = 10


def name(directory, number):
    return os.path.join(directory, f"{number}.db")


def connect(path):
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    # Each commit is synced as little as possible: what counts here is who sees what.
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def make(path, journal):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA page_size = 512")
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, version INTEGER, filler TEXT)")
    connection.execute("CREATE INDEX i ON t (filler)")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t VALUES (?, 0, ?)", ((n, f"{n:04}" * 60) for n in range(ROWS)))
    connection.execute("COMMIT")
    connection.close()


def look(connection, least):
    """One consistent state, not older than one that was seen before: its version."""
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "integrity"
    rows = connection.execute("SELECT id, version, filler FROM t ORDER BY id").fetchall()
    versions = {version for _, version, _ in rows}
    assert len(versions) == 1, f"half an update: {versions}"
    version = versions.pop()
    assert version >= least, f"version {version} after {least}"
    assert [row[0] for row in rows] == list(range(ROWS + version * ADDED)), f"lost rows: {len(rows)} at {version}"
    assert all(filler == f"{number + version:04}" * 60 for number, _, filler in rows), "a row's content"
    return version


def read(path, ready, go):
    """Opens the database before anybody writes, and reads until the last version is there."""
    connection = connect(path)
    version = look(connection, 0)
    assert version == 0
    os.write(ready, b"r")
    assert os.read(go, 1) == b"g"
    while version < UPDATES:
        version = look(connection, version)


def write(path):
    connection = connect(path)
    for version in range(1, UPDATES + 1):
        connection.execute("BEGIN IMMEDIATE")
        first = ROWS + (version - 1) * ADDED
        connection.executemany("INSERT INTO t VALUES (?, 0, '')", ((first + n,) for n in range(ADDED)))
        for number in range(first + ADDED):
            connection.execute(
                "UPDATE t SET version = ?, filler = ? WHERE id = ?", (version, f"{number + version:04}" * 60, number)
            )
        connection.execute("COMMIT")
        assert look(connection, version) == version
    connection.close()


def rewrite(path):
    ready_out, ready = os.pipe()
    go, go_in = os.pipe()
    readers = []
    for _ in range(READERS):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                read(path, ready, go)
                status = 0
            finally:
                sys.excepthook(*sys.exc_info()) if status else None
                sys.stderr.flush()
                os._exit(status)
        readers.append(child)
    for _ in readers:
        assert os.read(ready_out, 1) == b"r"
    os.write(go_in, b"g" * READERS)
    write(path)
    for child in readers:
        assert os.waitpid(child, 0)[1] == 0, f"a reader of {path}"
    for end in (ready_out, ready, go, go_in):
        os.close(end)


def main():
    step, count, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    for number in range(count):
        path = name(directory, number)
        if step == "make":
            make(path, ["DELETE", "WAL"][number % 2])
        elif step == "rewrite":
            rewrite(path)
        else:
            assert look(connect(path), 0) == UPDATES


main()
