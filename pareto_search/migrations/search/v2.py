"""A search's record as it was before its tables had a version of their own."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = None


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "search",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        *_filled(sa.String, "identity", "config", "data_sha256", "split_sha256", "base_id", "base_sha256"),
        *_filled(sa.BigInteger, "seed"),
        *_filled(sa.Integer, "lanes", "test_evaluations", "schema_version"),
        *_filled(sa.Float, "created", "elapsed_seconds"),
    )
    op.create_table(
        "candidate",
        *_in_order(),
        *_filled(sa.String, "id"),
        *_filled(sa.JSON, "genes", "parents"),
        *_filled(sa.String, "kind"),
        sa.UniqueConstraint("search", "id"),
        sa.ForeignKeyConstraint(["search"], ["search.id"]),
    )
    op.create_table(
        "attempt",
        *_in_order(),
        *_filled(sa.String, "candidate"),
        *_filled(sa.Integer, "number"),
        *_filled(sa.String, "state", "worker"),
        *_filled(sa.Float, "started"),
        sa.Column("ended", sa.Float),
        sa.Column("seconds", sa.Float),
        sa.Column("error", sa.String),
        sa.UniqueConstraint("search", "candidate", "number"),
        sa.ForeignKeyConstraint(["search", "candidate"], ["candidate.search", "candidate.id"]),
    )
    op.create_table(
        "evaluation",
        *_in_order(),
        *_filled(sa.String, "candidate"),
        *_filled(sa.Integer, "attempt", "steps", "setting"),
        *_filled(sa.JSON, "serving", "values"),
        sa.UniqueConstraint("search", "candidate", "attempt", "steps", "setting"),
        sa.ForeignKeyConstraint(
            ["search", "candidate", "attempt"], ["attempt.search", "attempt.candidate", "attempt.number"]
        ),
    )
    op.create_table(
        "journal",
        *_in_order(),
        *_filled(sa.String, "kind", "candidate"),
        *_filled(sa.Integer, "steps"),
        sa.UniqueConstraint("search", "candidate", "kind", "steps"),
        sa.ForeignKeyConstraint(["search", "candidate"], ["candidate.search", "candidate.id"]),
    )
    op.create_table(
        "fact",
        *_in_order(),
        *_filled(sa.String, "key"),
        *_filled(sa.JSON, "value"),
        sa.UniqueConstraint("search", "key"),
        sa.ForeignKeyConstraint(["search"], ["search.id"]),
    )


def _filled(kind: Any, *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]


def _in_order() -> list[sa.Column[Any]]:
    return [sa.Column("position", sa.Integer, primary_key=True), *_filled(sa.Integer, "search")]
