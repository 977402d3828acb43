"""The version is the tables' and no longer each search's; a search counts its changes, for who reads it again."""

import sqlalchemy as sa
from alembic import op

from pareto_search.errors import RunError

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """From version 2.

    Raises:
        RunError: a search is of version 1, which no release has written.
    """
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM search WHERE schema_version < 2")):
        raise RunError("a record of version 1, from before the first release, cannot be upgraded; begin a new search")
    op.drop_column("search", "schema_version")
    op.add_column("search", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.create_index("evaluation_in_order", "evaluation", ["search", "position"])
