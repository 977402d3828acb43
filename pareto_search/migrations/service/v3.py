"""Deployments."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """From version 2."""
    op.create_table(
        "service_deployment",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        *(sa.Column(name, sa.String, nullable=False) for name in ("search", "data", "token", "wish")),
        *(sa.Column(name, sa.JSON, nullable=False) for name in ("entries", "earlier")),
        sa.Column("canary", sa.JSON),
        sa.Column("port", sa.Integer, nullable=False, unique=True),
        sa.Column("error", sa.String),
        sa.Column("created", sa.Float, nullable=False),
    )
