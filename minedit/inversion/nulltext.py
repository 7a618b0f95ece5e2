"""Null-text inversion (Mokady et al. 2022, arXiv:2211.09794): the text that guidance leads away from is optimised.

At each step, from noise down, the embedding of the unconditional text is moved until guidance leads along the course of
the inversion; both rows are then drawn with it. As released (google/prompt-to-prompt, null_text_w_ptp.ipynb), whose 50
steps have a rate of 1e-2 (1 - i / 100) and stop at a loss of 1e-5 + 2e-5 i: here both go by the share of the run, so
that other numbers of steps are as good. Released: attention is edited while the conditional row of the source alone is
read, and so it is here.

Costs for each step a row to invert, one for the conditional text, up to ten times one with gradients, one to go on.
"""

from dataclasses import dataclass

from minedit.sampling.way import Job, Told, Way
from minedit.settings import Settings, setting


@dataclass(frozen=True)
class NullTextConfig(Settings):
    """The text that guidance leads away from is optimised at every step, until guidance leads along the course of the
    inversion. Slow: up to ten passes with gradients a step, and memory for them; a model made for speed on a GPU has
    none.
    """

    inner_steps: int = setting(10, "steps of optimisation at each step of the run, at most", low=1, high=1000)
    learning_rate: float = setting(0.01, "their rate at the first step; half of it at the last", low=0)
    early_stop: float = setting(1e-5, "loss at which they end early; at the last step of the run 0.001 more", low=0)

    def prepare(self, job: Job) -> Way:
        from minedit.inversion.course import course  # torch's: settings are read without it
        from minedit.inversion.embedding import optimised, read_from

        trajectory = course(job)
        texts, notes = optimised(job, trajectory, self)
        return Way(start=trajectory[0], predict=read_from(job, texts), told=lambda: Told((), notes))
