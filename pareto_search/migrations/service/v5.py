"""A record is of one root."""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """From version 4."""
    op.create_table(
        "service_root",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("folder", sa.String, nullable=False),
    )
