"""The service's record as it was before its tables had a version."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "service_search",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        *(
            sa.Column(name, sa.String, nullable=False)
            for name in ("name", "data", "base", "state", "wish", "body_sha256")
        ),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("error", sa.String),
        sa.Column("key", sa.String, unique=True),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "service_data",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("origin", sa.String, nullable=False),
        sa.Column("section", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
