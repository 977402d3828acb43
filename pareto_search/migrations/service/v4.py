"""Deployments are made once for each idempotency key."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """From version 3."""
    with op.batch_alter_table("service_deployment") as table:
        table.add_column(sa.Column("key", sa.String))
        table.add_column(sa.Column("body_sha256", sa.String, nullable=False, server_default=""))
        table.create_unique_constraint("service_deployment_key", ["key"])
