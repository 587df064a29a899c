"""The migrated schema equals the declared one, and migrations run both ways with data present."""

from __future__ import annotations

import itertools
import re
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

from models.bootstrap import alembic_config
from models.states import TERMINAL, TRANSITIONS, State
from models.tables import metadata
from vestry.db.operations import uuid7
from workers.stack.dev_stack import DevStack


def owner_url(stack: DevStack) -> str:
    return stack.database_url("vestry_owner").replace("postgresql://", "postgresql+psycopg://")


def differences(url: str) -> list[Any]:
    engine = create_engine(url)
    with engine.connect() as conn:
        context = MigrationContext.configure(
            conn,
            opts={
                "include_schemas": True,
                "compare_type": True,
                "compare_server_default": False,
                "include_object": lambda o, name, kind, *_: (
                    not (kind == "table" and (name == "alembic_version" or "_embeddings_s" in name))
                    and not (kind == "table" and o.schema != "vestry")
                ),
            },
        )
        result = compare_metadata(context, metadata)
    engine.dispose()
    # Comments are in the database only: `\d+` shows them.
    changes = [
        change for entry in result for change in (entry if isinstance(entry, list) else [entry])
    ]
    return [change for change in changes if not change[0].endswith("_comment")]


def test_migrated_schema_equals_the_declared_one(clean: DevStack) -> None:
    assert differences(owner_url(clean)) == []


def test_undeclared_column_is_a_difference(clean: DevStack) -> None:
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE vestry.jobs ADD COLUMN stray integer")
        try:
            assert differences(owner_url(clean))
        finally:
            conn.execute("ALTER TABLE vestry.jobs DROP COLUMN stray")


def test_downgrade_and_upgrade_with_data(clean: DevStack) -> None:
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        conn.execute("INSERT INTO vestry.owners (owner) VALUES ('ann')")
        conn.execute(
            """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool)
               VALUES (gen_random_uuid(), 'embedding', 'ann', 'private', 'bulk', 'gpu')"""
        )
        conn.execute(
            "SELECT vestry.ensure_space_v1('s.1', 'm', 'r', 3, '', '', true, 'fp32', 'test')"
        )
    config = alembic_config(owner_url(clean))
    command.downgrade(config, "base")
    with psycopg.connect(clean.superuser_url) as conn:
        tables = conn.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'vestry'"
        ).fetchall()
        functions = conn.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'vestry'::regnamespace"
        ).fetchall()
        grants = conn.execute(
            """SELECT DISTINCT a.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) a
               WHERE c.relnamespace = 'vestry'::regnamespace
               UNION SELECT a.grantee::regrole::text FROM pg_namespace n, aclexplode(n.nspacl) a
               WHERE n.nspname = 'vestry'"""
        ).fetchall()
    assert tables == [("alembic_version",)]
    assert functions == []
    assert grants == [("vestry_owner",)]
    command.upgrade(config, "head")
    assert differences(owner_url(clean)) == []
    with psycopg.connect(clean.database_url("vestry_producer")) as conn:
        lanes = conn.execute("SELECT count(*) FROM vestry.lanes").fetchone()
        jobs = conn.execute("SELECT count(*) FROM vestry.jobs").fetchone()
    assert (lanes, jobs) == ((10,), (0,))


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(State, 2)))
def test_database_allows_exactly_the_declared_transitions(
    clean: DevStack, before: State, after: State
) -> None:
    columns = {
        state: "lease_id = gen_random_uuid(), finished_at = NULL, start_tag = NULL"
        if state is State.RUNNING
        else "lease_id = NULL, start_tag = NULL, "
        f"finished_at = {'now()' if state in TERMINAL else 'NULL'}"
        for state in State
    }
    job = uuid7()
    with psycopg.connect(clean.superuser_url) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute(
            """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool, state, lease_id,
                                        finished_at)
               VALUES (%s, 'embedding', 'ann', 'private', 'bulk', 'gpu', %s, %s, %s)""",
            [job, before, uuid7() if before is State.RUNNING else None,
             "now" if before in TERMINAL else None],
        )  # fmt: skip
        conn.execute("SET session_replication_role = origin")
        update = f"UPDATE vestry.jobs SET state = '{after}', {columns[after]} WHERE id = '{job}'"
        if (before, after) in TRANSITIONS:
            conn.execute(update)
        else:
            with pytest.raises(psycopg.Error) as refused:
                conn.execute(update)
            assert refused.value.sqlstate == "VY005"


def test_everything_in_the_schema_belongs_to_its_owner_role(clean: DevStack) -> None:
    with psycopg.connect(clean.superuser_url) as conn:
        owners = conn.execute(
            """SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class
               WHERE relnamespace = 'vestry'::regnamespace
               UNION SELECT DISTINCT pg_get_userbyid(proowner) FROM pg_proc
               WHERE pronamespace = 'vestry'::regnamespace"""
        ).fetchall()
        paths = conn.execute(
            """SELECT proname, proconfig FROM pg_proc
               WHERE pronamespace = 'vestry'::regnamespace AND prosecdef"""
        ).fetchall()
    assert owners == [("vestry_owner",)]
    assert paths
    assert all(re.search(r"search_path=.*pg_temp", str(config)) for _, config in paths)


@pytest.mark.parametrize("role", ["vestry_cloud", "vestry_shareable", "vestry_control"])
@pytest.mark.parametrize(
    "table", ["payloads", "results", "blobs", "documents", "chunks", "embeddings"]
)
def test_private_content_is_denied_to_other_roles(clean: DevStack, role: str, table: str) -> None:
    column = {"chunks": "text", "embeddings": "vector", "documents": "detail"}.get(table, "body")
    with (
        psycopg.connect(clean.database_url(role)) as conn,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        conn.execute(f"SELECT {column} FROM vestry.private_{table}")


def test_private_worker_sees_only_the_owners_that_it_names(clean: DevStack) -> None:
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        for owner in ("ann", "bob"):
            conn.execute(
                """INSERT INTO vestry.private_results (job_id, owner, key_id, body, expires_at)
                   VALUES (gen_random_uuid(), %s, gen_random_uuid(), 'x', now())""",
                [owner],
            )
    with psycopg.connect(clean.database_url("vestry_private")) as conn:
        query = "SELECT owner FROM vestry.private_results"
        assert conn.execute(query).fetchall() == []
        conn.execute("SELECT set_config('vestry.owners', '{bob}', true)")
        assert conn.execute(query).fetchall() == [("bob",)]
        conn.commit()
        # The setting is an empty string now, not NULL: no rows, and no error.
        assert conn.execute(query).fetchall() == []


def test_jobs_table_shows_each_role_its_own_jobs(clean: DevStack) -> None:
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        conn.execute(
            text(
                """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool)
                   SELECT gen_random_uuid(), 'embedding', 'ann', p, 'bulk', o
                   FROM (VALUES ('private', 'gpu'), ('shareable', 'gpu'), ('shareable', 'cloud'))
                     v(p, o)"""
            ).text
        )
    visible = {}
    for role in ("private", "shareable", "cloud"):
        with psycopg.connect(clean.database_url(f"vestry_{role}")) as conn:
            visible[role] = sorted(
                row[0] for row in conn.execute("SELECT privacy || '.' || pool FROM vestry.jobs")
            )
    assert visible == {
        "private": ["private.gpu"],
        "shareable": ["shareable.cloud", "shareable.gpu"],
        "cloud": ["shareable.cloud"],
    }


def test_contradictory_rows_violate_a_check(clean: DevStack) -> None:
    good = {
        "privacy": "'shareable'", "pool": "'gpu'", "state": "'queued'", "lease_id": "NULL",
        "start_tag": "1", "finished_at": "NULL",
    }  # fmt: skip
    wrong: list[dict[str, str]] = [
        {"state": "'running'", "start_tag": "NULL"},
        {"lease_id": "gen_random_uuid()"},
        {"state": "'running'", "lease_id": "gen_random_uuid()"},
        {"state": "'dead'", "start_tag": "NULL"},
        {"finished_at": "now()"},
        {"privacy": "'private'", "pool": "'cloud'"},
    ]
    with psycopg.connect(clean.superuser_url, autocommit=True) as admin:
        for change in ({}, *wrong):
            values = ", ".join((good | change).values())
            insert = f"""INSERT INTO vestry.jobs (id, kind, owner, latency, {", ".join(good)})
                         VALUES (gen_random_uuid(), 'embedding', 'ann', 'bulk', {values})"""
            if not change:
                admin.execute(insert)
                continue
            with pytest.raises(psycopg.errors.CheckViolation):
                admin.execute(insert)
