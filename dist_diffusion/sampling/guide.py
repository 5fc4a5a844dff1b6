"""From a job's networks and guidance settings to the denoiser that its sampler is handed."""

from dataclasses import dataclass

import torch

from dist_diffusion.config.schema import DiffusionRecipe
from dist_diffusion.diffusion.denoiser import Denoiser, Model, clipped, model_denoiser
from dist_diffusion.diffusion.guidance import (
    Gradient,
    Rule,
    classifier_gradient,
    guided,
    linear,
    null_label_pair,
    projected,
    renoised,
    rescaled,
    score_shifted,
    two_models_pair,
    within,
)
from dist_diffusion.diffusion.options import GuidanceOptions
from dist_diffusion.sampling.cost import Evaluations
from dist_diffusion.sampling.models import Models, diffusion_recipe
from dist_diffusion.weights.load import LoadedModel


@dataclass(frozen=True)
class Guide:
    """What one batch is guided by. Rules may remember: make one for each batch."""

    models: Models
    options: GuidanceOptions
    clip_x0: bool
    evaluations: Evaluations
    low_res: torch.Tensor | None
    """The batch's smaller images, of super-resolution."""

    def denoiser(self) -> Denoiser:
        """The guided denoiser, without the classifier: the mix by cfg_scale, autoguidance of that, then the limits."""
        options = self.options
        plain = self.of_model(self.models.model)
        made = plain
        if options.mode in ("cfg", "both") and (options.cfg_scale != 1 or options.cfg_plus_plus):
            made = self.classifier_free(plain)
        if self.models.weaker is not None:
            pair = two_models_pair(made, self.of_model(self.models.weaker), reference_has_labels=True)
            made = guided(pair, linear(options.auto_scale))
        if self.clip_x0:
            made, plain = clipped(made), clipped(plain)
        return made if options.interval is None or made is plain else within(options.interval, made, plain)

    def classifier_free(self, conditional: Denoiser) -> Denoiser:
        """Away from the unconditional estimate: by the null label, or of another model."""
        rule = cfg_rule(self.options)
        if self.models.unconditional is not None:
            other = self.of_model(self.models.unconditional)
            return guided(two_models_pair(conditional, other, reference_has_labels=False), rule)
        null_label = recipe_of(self.models.model).model.num_classes
        assert null_label
        return guided(null_label_pair(conditional, null_label), rule)

    def gradient(self) -> Gradient | None:
        """The classifier's scaled gradient, in the modes that use it."""
        options, classifier = self.options, self.models.classifier
        if options.mode not in ("classifier", "both"):
            return None
        assert classifier is not None

        def counted(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            self.evaluations.classifier += len(x)
            logits: torch.Tensor = classifier.module(x, time)
            return logits

        return classifier_gradient(
            counted,
            options.classifier_scale,
            options.classifier_temperature,
            options.gradient_clamp,
            options.interval,
        )

    def score_form(self) -> Denoiser:
        """The denoiser with the classifier's gradient in it, for samplers that take no mean shift."""
        gradient = self.gradient()
        return self.denoiser() if gradient is None else score_shifted(self.denoiser(), gradient)

    def of_model(self, loaded: LoadedModel) -> Denoiser:
        """A network as a denoiser, its evaluations counted."""
        return model_denoiser(self.network(loaded), recipe_of(loaded).diffusion)

    def network(self, loaded: LoadedModel) -> Model:
        """The network as denoisers know it; of super-resolution, given its batch's smaller images."""
        low_res = self.low_res

        def model(x_t: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            self.evaluations.network += len(x_t)
            if low_res is None:
                return loaded.module(x_t, time, labels)
            # Classifier-free guidance sends the batch through twice at once.
            return loaded.module(x_t, time, labels, low_res.repeat(len(x_t) // len(low_res), 1, 1, 1))

        return model


def recipe_of(loaded: LoadedModel) -> DiffusionRecipe:
    """The recipe of a diffusion model."""
    return diffusion_recipe(loaded)[0]


def cfg_rule(options: GuidanceOptions) -> Rule:
    """How the conditional and the unconditional estimate are mixed."""
    scale = options.cfg_scale
    rule = linear(scale)
    if options.apg_eta != 1 or options.apg_norm is not None or options.apg_momentum:
        rule = projected(scale, options.apg_eta, options.apg_norm, options.apg_momentum)
    if options.cfg_rescale:
        rule = rescaled(rule, options.cfg_rescale)
    return renoised(rule) if options.cfg_plus_plus else rule
