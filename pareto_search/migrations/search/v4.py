"""Evaluations say by how much chance alone may set them apart from the warm start."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """From version 3."""
    op.add_column("evaluation", sa.Column("margins", sa.JSON, nullable=False, server_default="{}"))
