"""What deployments are asked for, as a noun that those who ask and those who answer share."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from pareto_search.errors import ConfigError
from pareto_search.recsys.rerank import POOL


class Question(BaseModel):
    """A request: who, how many items, of which kind, and by which entry.

    Attributes:
        user, history: one of them; a user of the data set, or items, oldest first. Items that the data set does not
            have are left out.
        times: when each item of the history was, in the data's unit of time; None where nobody knows.
        groups: which groups this user belongs to, such as `occupation` -> `artist`, where the model reads them; None
            where nobody knows.
        k: how many items.
        exclude: items that must not be shown, beside those of the history.
        least: `credibility` or `novelty` -> the least that an item must have, 0..1.
        entry: the name of a served one; or else:
        prefer: objective -> weight, which pick the nearest of the served entries; without both, the first one answers,
            or the canary.
        explain: whether to give reasons.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: str | None = None
    history: tuple[str, ...] | None = None
    times: tuple[FiniteFloat, ...] | None = None
    groups: dict[str, str] | None = None
    k: Annotated[int, Field(ge=1, le=POOL)] = 10
    exclude: tuple[str, ...] = ()
    least: dict[str, FiniteFloat] = {}
    entry: str | None = None
    prefer: dict[str, FiniteFloat] | None = None
    explain: bool = False

    @model_validator(mode="after")
    def _is_one_wish(self) -> "Question":
        if (self.user is None) == (self.history is None):
            raise ValueError("give either user or history")
        if self.times is not None and self.history is None:
            raise ValueError("times say when the items of the history were; give both, or the user alone")
        if self.times is not None and self.history is not None and len(self.times) != len(self.history):
            raise ValueError(f"times are {len(self.times)}; expected one for each of the {len(self.history)} items")
        if self.groups and self.history is None:
            raise ValueError("groups say who has the history; give both, or the user alone")
        if self.entry is not None and self.prefer is not None:
            raise ValueError("give either entry or prefer")
        if unknown := self.least.keys() - {"credibility", "novelty"}:
            raise ValueError(f"least has '{min(unknown)}'; expected credibility or novelty")
        return self


@dataclass(frozen=True)
class Canary:
    """An entry on trial: it answers a share of those who name no entry, always the same people.

    Raises:
        ConfigError: the share is not within 0..1.
    """

    entry: str
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"the canary's share is {self.share:g}; expected 0 to 1")

    @classmethod
    def parse(cls, text: str) -> "Canary":
        """Reads `ENTRY=SHARE`.

        Raises:
            ConfigError: the text has another form.
        """
        entry, _, number = text.partition("=")
        try:
            return cls(entry, float(number))
        except ValueError:
            raise ConfigError(f"canary '{text}' is not of the form 'c0009-s07=0.1'") from None
