"""Every grant and policy of every role: an additional or a missing one fails a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from models.bootstrap import ROLES
from workers.stack.dev_stack import DevStack

CONTENT = ("payloads", "results", "blobs", "documents", "chunks", "embeddings")
STATE = ("state", "start_tag", "attempt", "crashes", "quarantined", "degraded", "lease_id",
         "error_code", "error_message", "run_at", "hinted_at", "started_at", "finished_at")  # fmt: skip
MOVES = {"jobs": {"SELECT", *(f"UPDATE({column})" for column in STATE)},
         "lanes": {"SELECT", "UPDATE(virtual_time)"},
         "leases": {"SELECT", "INSERT", "UPDATE", "DELETE"}}  # fmt: skip
WORKS = MOVES | {
    "jobs": MOVES["jobs"] | {"UPDATE(tried_models)"},
    "receipts": {"SELECT", "INSERT", "UPDATE"}, "job_documents": {"SELECT"}, "spaces": {"SELECT"},
    "backend_health": {"SELECT"},
}  # fmt: skip
LIBRARY = {f"shareable_{name}": {"SELECT"} for name in ("documents", "chunks", "embeddings")}
"""Rights of a private worker on shareable content, for grounded answers."""
SPENDS = {"spending": {"SELECT", "INSERT", "UPDATE"}}


def handles(privacy: str) -> dict[str, set[str]]:
    """Rights of a privacy class's worker on the class's content."""
    return {
        f"{privacy}_payloads": {"SELECT", "DELETE"},
        f"{privacy}_blobs": {"SELECT", "DELETE"},
        f"{privacy}_results": {"SELECT", "INSERT", "UPDATE"},
        f"{privacy}_documents": {"SELECT", "UPDATE"},
        f"{privacy}_chunks": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        f"{privacy}_embeddings": {"SELECT", "INSERT", "UPDATE", "DELETE"},
    }


def both(table: str, *rights: str) -> dict[str, set[str]]:
    return {f"{privacy}_{table}": set(rights) for privacy in ("private", "shareable")}


GRANTS: Mapping[str, Mapping[str, set[str]]] = {
    "vestry_private": WORKS | handles("private") | LIBRARY | {"owner_keys": {"SELECT"}},
    "vestry_shareable": WORKS | handles("shareable") | SPENDS,
    "vestry_cloud": WORKS | handles("shareable") | SPENDS,
    "vestry_control": MOVES | {
        "jobs": MOVES["jobs"] | {"DELETE"},
        "receipts": {"SELECT", "INSERT", "DELETE"},
        "job_documents": {"SELECT", "DELETE"},
        "idempotency_keys": {"SELECT", "DELETE"},
        "routes": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        "backend_health": {"SELECT"}, "spending": {"SELECT"},
        **both("payloads", "DELETE", "SELECT(job_id)", "SELECT(owner)"),
        **both("blobs", "DELETE", "SELECT(job_id)", "SELECT(name)", "SELECT(part)"),
        **both("results", "DELETE", "SELECT(job_id)", "SELECT(expires_at)"),
    },
    "vestry_monitor": {
        name: {"SELECT"}
        for name in ("jobs", "lanes", "leases", "receipts", "backend_health", "routes", "spending",
                     "egress")
    },
    "vestry_operator": {
        name: {"SELECT"}
        for name in ("owners", "owner_keys", "wrapping_keys", "jobs", "receipts", "egress")
    },
    "vestry_producer": {
        **{name: {"SELECT"} for name in (
            "jobs", "lanes", "spaces", "receipts", "owner_keys", "backend_health", "routes", "spending"
        )},
        **both("payloads", "SELECT"), **both("blobs", "SELECT"),
        **both("results", "SELECT", "DELETE"),
        **both("documents", "SELECT"), **both("chunks", "SELECT"), **both("embeddings", "SELECT"),
    },
}  # fmt: skip

WORKERS = {"vestry_private", "vestry_shareable", "vestry_cloud"}
CALLS: Mapping[str, set[str]] = {
    "clock": set(ROLES) - {"vestry_owner"},
    "next_start_tag_v1": WORKERS | {"vestry_control"},
    "ensure_space_v1": WORKERS,
    "guard_transition": set(),
    "advance_flow": set(),
    "route_v1": set(),
    "enqueue_jobs_v1": {"vestry_producer"},
    "store_blobs_v1": {"vestry_producer"},
    "replay_jobs_v1": {"vestry_producer"},
    "private_sources_v1": {"vestry_producer"},
    "lock_roots_v1": WORKERS,
    "upstream_v1": WORKERS,
    "reroute_jobs_v1": {"vestry_shareable", "vestry_cloud"},
    "move_jobs_v1": {"vestry_control"},
    **{f"backend_{event}_v1": WORKERS for event in ("failed", "succeeded", "released", "probe")},
    "breakers_v1": set(ROLES) - {"vestry_owner", "vestry_operator"},
    "acquire_permit_v1": WORKERS,
    "ensure_owner_key_v1": {"vestry_producer"},
    "cancel_jobs_v1": {"vestry_producer", "vestry_operator"},
    "delete_documents_v1": {"vestry_producer"},
    "pause_lane_v1": {"vestry_producer"},
    **{name: {"vestry_operator"} for name in (
        "rewrap_owner_keys_v1", "retire_key_v1", "forget_owner_v1", "await_enqueues_v1",
        "forget_content_v1",
    )},
    "active_owners_v1": WORKERS,
    "record_egress_v1": {"vestry_cloud"},
    "guard_key": set(),
    "guard_owners": set(),
}  # fmt: skip

OPEN = {
    "alembic_version", "lanes", "spaces", "routes", "backend_health", "rate_permits", "spending",
    "wrapping_keys",
}  # fmt: skip
"""Tables without row security: a role that may read them reads all rows."""


@pytest.fixture
def root(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.superuser_url) as conn:
        conn.execute(
            "SELECT vestry.ensure_space_v1('s.1', 'm', 'r', 3, '', '', true, 'fp32', 'test')"
        )
        yield conn


def test_roles_have_these_grants_and_no_other(root: psycopg.Connection[Any]) -> None:
    rows = root.execute(
        """SELECT grantee, relname, array_agg(DISTINCT privilege || coalesce('(' || attname || ')', ''))
           FROM (SELECT a.grantee, c.relname, a.privilege_type AS privilege, NULL AS attname
                 FROM pg_class c, aclexplode(c.relacl) a
                 WHERE c.relnamespace = 'vestry'::regnamespace AND a.grantee <> c.relowner
                 UNION ALL
                 SELECT a.grantee, c.relname, a.privilege_type, t.attname
                 FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
                 WHERE c.relnamespace = 'vestry'::regnamespace AND a.grantee <> c.relowner) g
           GROUP BY grantee, relname"""
    ).fetchall()
    names = dict(root.execute("SELECT oid, rolname FROM pg_roles").fetchall())
    granted: dict[str, dict[str, set[str]]] = {}
    for grantee, table, rights in rows:
        granted.setdefault(names.get(grantee, "PUBLIC"), {})[table] = set(rights)
    for role in granted.keys() | GRANTS.keys():
        expected = dict(GRANTS.get(role, {}))
        if role in GRANTS:
            expected["alembic_version"] = {"SELECT"}
        assert granted.get(role, {}) == expected, role


def test_functions_are_executable_by_these_roles_and_no_other(
    root: psycopg.Connection[Any],
) -> None:
    rows = root.execute(
        """SELECT p.proname, coalesce(r.rolname, 'PUBLIC')
           FROM pg_proc p LEFT JOIN aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
             ON a.grantee <> p.proowner
           LEFT JOIN pg_roles r ON r.oid = a.grantee
           WHERE p.pronamespace = 'vestry'::regnamespace AND a.grantee IS NOT NULL"""
    ).fetchall()
    executable: dict[str, set[str]] = {name: set() for name in CALLS}
    for name, role in rows:
        executable.setdefault(name, set()).add(role)
    assert executable == CALLS


def test_no_role_is_a_member_of_another(root: psycopg.Connection[Any]) -> None:
    members = root.execute(
        """SELECT member::regrole::text, roleid::regrole::text FROM pg_auth_members
           WHERE member::regrole::text LIKE 'vestry%'"""
    ).fetchall()
    assert members == []
    privileged = root.execute(
        """SELECT rolname FROM pg_roles WHERE rolname LIKE 'vestry%'
           AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)"""
    ).fetchall()
    assert privileged == []


def test_row_security_is_forced_on_every_table_with_owners(
    root: psycopg.Connection[Any],
) -> None:
    tables = dict(
        root.execute(
            """SELECT relname, relrowsecurity AND relforcerowsecurity FROM pg_class
               WHERE relnamespace = 'vestry'::regnamespace AND relkind IN ('r', 'p')
                 AND NOT relispartition"""
        ).fetchall()
    )
    assert {name for name, bound in tables.items() if not bound} == OPEN
    assert {f"{privacy}_{t}" for privacy in ("private", "shareable") for t in CONTENT} < set(tables)


Policies = dict[tuple[str, str], tuple[str | None, str | None, str]]


def policies() -> Policies:
    """Condition, check and command by table and role."""
    setting = "NULLIF(current_setting('vestry.owners'::text, true), ''::text)"
    named = f'(owner = ANY ((( SELECT {setting} AS "nullif"))::text[]))'
    one = ("(owner = ( SELECT CASE WHEN (cardinality(s.n) = 1) THEN s.n[1] ELSE NULL::text END AS "
           f'"case" FROM ( SELECT ({setting})::text[] AS n) s))')  # fmt: skip
    expected: Policies = {}
    for table in ("jobs", "leases", "receipts", "job_documents"):
        for role in ("vestry_owner", "vestry_control", "vestry_producer", "vestry_monitor"):
            expected[table, role] = ("true", "true", "ALL")
        for role in WORKERS:
            privacy = "private" if role == "vestry_private" else "shareable"
            own = f"(privacy = '{privacy}'::text)"
            expected[table, role] = (own, own, "ALL")
    for table in ("owners", "owner_keys", "idempotency_keys"):
        expected[table, "vestry_owner"] = ("true", "true", "ALL")
    for table in ("owners", "owner_keys", "jobs", "receipts", "egress"):
        expected[table, "vestry_operator"] = ("true", None, "SELECT")
    expected["owner_keys", "vestry_private"] = (named, None, "SELECT")
    expected["owner_keys", "vestry_producer"] = (one, None, "SELECT")
    expected["idempotency_keys", "vestry_control"] = ("true", None, "ALL")
    expected["egress", "vestry_monitor"] = ("true", None, "SELECT")
    return expected | content_policies(named, one)


def content_policies(named: str, one: str) -> Policies:
    expected: Policies = {}
    for privacy, worker in (
        ("private", {"vestry_private"}),
        ("shareable", {"vestry_shareable", "vestry_cloud"}),
    ):
        for kind in CONTENT:
            table = f"{privacy}_{kind}"
            expected[table, "vestry_owner"] = ("true", "true", "ALL")
            if kind in {"payloads", "results", "blobs"}:
                expected[table, "vestry_control"] = ("true", None, "ALL")
            library = privacy == "shareable" and kind in {"documents", "chunks", "embeddings"}
            for role in worker:
                expected[table, role] = (
                    ("true", "true", "ALL") if library else (named, named, "ALL")
                )
            expected[table, "vestry_producer"] = (
                ("true", "true", "ALL") if library else (one, one, "ALL")
            )
            if library:
                expected[table, "vestry_private"] = ("true", "false", "ALL")
    return expected


def test_policies_are_these_and_no_other(root: psycopg.Connection[Any]) -> None:
    expected = policies()
    rows = [
        (*row[:2], *(part and " ".join(part.split()) for part in row[2:4]), *row[4:])
        for row in root.execute(
            """SELECT tablename, unnest(roles)::text, qual, with_check, permissive, cmd
               FROM pg_policies WHERE schemaname = 'vestry'"""
        )
    ]
    cloud = [row[:5] for row in rows if row[4] == "RESTRICTIVE"]
    assert sorted(cloud) == [
        ("jobs", "vestry_cloud", "(pool = 'cloud'::text)", None, "RESTRICTIVE"),
        ("leases", "vestry_cloud", "(lane ~~ '%.cloud'::text)", None, "RESTRICTIVE"),
    ]
    # Egress records can only be appended and read, by the owner of the table too.
    record = {row[5] for row in rows if row[:2] == ("egress", "vestry_owner")}
    assert record == {"SELECT", "INSERT"}
    permissive = [
        row for row in rows if row[4] == "PERMISSIVE" and row[:2] != ("egress", "vestry_owner")
    ]
    assert {(row[0], row[1]): (*row[2:4], row[5]) for row in permissive} == expected
    assert len(permissive) == len(expected)


def test_private_vectors_have_no_approximate_index(root: psycopg.Connection[Any]) -> None:
    rows = root.execute(
        """SELECT c.relname, a.amname FROM pg_index i
           JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam
           JOIN pg_class c ON c.oid = i.indrelid WHERE a.amname NOT IN ('btree')
             AND c.relnamespace = 'vestry'::regnamespace"""
    ).fetchall()
    assert rows == [("shareable_embeddings_s1", "hnsw")]
