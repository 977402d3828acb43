"""What runs and what waits is found without reading all that has ended."""

from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """From version 1."""
    op.create_index("service_search_state", "service_search", ["state"])
