"""h-Edit (Nguyen et al., CVPR 2025, arXiv:2503.02187), its deterministic form: a term a step that leads to the target.

The source is on its course: that of a photograph's DDIM inversion, or the run that draws it. With ε(c) the noise that
prompt c predicts and ε^w(c) = ε(∅) + w (ε(c) - ε(∅)), a step first takes the edit's latents along ε^w(source), and
along what the source's course has there beside ε^w(source); w is the guidance that the source was drawn with, 1 for a
photograph's. To this base, c f is added: c is what a step makes of a noise, and f = ε^w_edit(target) - ε^ŵ(source).
Explicit: f is that of the latents before the step. Implicit: of those behind it, at their time, one or more times over;
from the second on, `reconstruction` · rms(f) goes back towards the base, in every number. Prompt-to-Prompt's rules act
on ε(target), which reads the source of the same time; ε(source) of the edit's latents is left alone.

The defaults are those of the released code for h-Edit-D with Prompt-to-Prompt (nktoan/h-edit, h_edit_D_p2p): "9/10" of
the paper is ŵ of 9, w_edit of 10. Agrees with it: in float64, final latents within 3e-12 after 4 and 20 implicit steps
and 10 explicit ones, also with the term added twice, with a blend and a weight, and with a word more once
Prompt-to-Prompt's columns are theirs. Rounding grows with the steps: in float32, with the test's random weights, 20
implicit ones end 3e-3 from those latents, the released code's own 5e-3. Meant to differ:
- The released run of this form has times 980 ... 0; here 981 ... 1, as everywhere, whose last step changes the edit.
- The pull back is the released one times 1 + 1e-8 n, n the numbers of a latent: 1.6e-4 more at 512 x 512. Released,
  1e-8 is added to the gradient's size, 1 / n, before it divides.
- Self-attention is the source's up to config.self_size, 16 x 16; released: 32 x 32. Words: as p2p.py says.
- Its script for PIE-Bench replaces words only in eight pictures that it names, elsewhere refines; blends the words that
  the data set names and gives the new ones a weight of 2. Here: --controller, --blend, --reweight.
- A source that is drawn, with the run's guidance for w, is not in it.

The released 9 and 10 are for Stable Diffusion. The embedded model's backgrounds wash out by them (of four edits that
were looked at, 20 steps, a red bird's forest most); 4 and 5 changed the bird and the time of day as well and kept more.

Rows of the UNet a step, for a photograph: 1 to invert, then 4, explicit; 2 and 4 each time over, implicit, of which 1
less behind the last step with injected attention. A drawn source: 5; 4 and 4. Released, in the same order, 2 rows twice
to invert, 9, and 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from minedit.config import MineditError
from minedit.methods import Job, Way
from minedit.methods.p2p import P2PConfig
from minedit.settings import setting, settings


def _released(name: str, default: object) -> object:
    """A setting of Prompt-to-Prompt with another default."""
    return field(default=default, metadata={"setting": settings(P2PConfig)[name]})


@dataclass(frozen=True)
class HEditConfig(P2PConfig):
    """h-Edit, the deterministic form: on the course that draws the source again, a term at every step leads from it to
    the target. Prompt-to-Prompt's rules act in that term. A photograph is inverted along its own course, there is no
    inversion to choose; --guidance is that of a source which is drawn."""

    edit_guidance: float = setting(10.0, "w_edit: guidance of the target in the term that edits", low=0)
    original_guidance: float = setting(
        9.0, "ŵ: guidance of the source in it; a little less than that of the target keeps most", low=0
    )
    implicit: bool = setting(True, "the term is that of the latents behind the step; without, of those before it")
    optimisation_steps: int = setting(1, "times that the term is added at each step; only implicit", low=1, high=100)
    reconstruction: float = setting(
        0.1, "pull back to the source's course, a share of the term, from the second time on", low=0
    )
    cross_steps: float | tuple[float, float] = _released("cross_steps", 0.4)
    self_steps: float | tuple[float, float] = _released("self_steps", 0.6)
    controller: str = _released("controller", "refine")

    inverts, spares = False, True  # its inversion is direct.py's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimisation_steps > 1 and not self.implicit:
            raise MineditError(f"optimisation_steps is {self.optimisation_steps}, expected 1 where implicit is False")

    def off(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        once = {("optimisation_steps",): ("reconstruction",)} if self.optimisation_steps == 1 else {}
        return super().off() | once

    def prepare(self, job: Job) -> Way:
        from minedit.methods.hterm import predicting  # torch's: settings are read without it

        if job.run.eta:
            raise MineditError(f"eta is {job.run.eta:g}, expected 0: h-Edit's form here is the deterministic one")
        way = super().prepare(job)  # first: it may raise
        found = job.inversions["direct"]().prepare(job) if job.photo else None
        if not way.prompts:
            way = replace(way, predict=predicting(job, self, found and found.predict))
        return way.on(found) if found else way
