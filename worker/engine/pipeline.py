"""StableDiffusionInpaintPipeline: the call, from arguments to pictures.

    call ──check──▶ prepare_request ──▶ Request ──denoise_step──▶ … ──▶ finish_request ──▶ pictures

`__call__` is these three in a row. A step loop that serves many calls at once uses them one by one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from worker.engine import prompts
from worker.engine.call import Call
from worker.engine.callbacks import StepEnd, changed, view, wanted_tensors, with_guidance
from worker.engine.checks import Limits, check, is_int, require
from worker.engine.components import default_sample_size, require_scheduler
from worker.engine.denoise import denoise_step
from worker.engine.guidance import guidance_scale_embedding, is_guided
from worker.engine.image_processor import Pictures
from worker.engine.image_prompts import prompt_tokens
from worker.engine.latents import Encode, latents_of
from worker.engine.noise import Generators
from worker.engine.output import StableDiffusionPipelineOutput, decode, require_finite
from worker.engine.pipeline_files import PipelineFiles
from worker.engine.prepare import Reading, overlay_of, prepare_grid, read_canvas
from worker.engine.request import Request
from worker.engine.schedulers import Scheduler
from worker.engine.vae_asymmetric import AsymmetricAutoencoderKL

Texts = tuple[torch.Tensor, torch.Tensor | None]


class StableDiffusionInpaintPipeline(PipelineFiles):
    """Repaint what a mask marks, as a text says. Drop-in for diffusers' class of this name; see README.md."""

    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds", "mask", "masked_image_latents")
    _guidance_scale = 7.5
    _clip_skip: int | None = None
    _cross_attention_kwargs: dict[str, Any] | None = None
    _num_timesteps = 0
    _interrupt = False

    @property
    def guidance_scale(self) -> float:
        """Of the call in progress; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def clip_skip(self) -> int | None:
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to end the call after this step."""
        return self._interrupt

    @property
    def do_classifier_free_guidance(self) -> bool:
        return is_guided(self._guidance_scale, self.unet.config.time_cond_proj_dim)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        masked_image_latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        callback: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
        callback_steps: int | None = None,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Pictures of `image` with what `mask_image` marks (white) repainted.

        B prompts times `num_images_per_prompt` make N pictures; a list of images or masks is tiled to N.

        prompt, negative_prompt: a string, or a list of B. Over 77 tokens are cut off. The negative prompt is read
            only under guidance.
        image: RGB pictures (`image_processor` says which kinds), or latents ``[n, 4, h, w]``; any size.
        mask_image: one channel, white to repaint; same kinds; binarized at one half.
        masked_image_latents: ``[n, 4, h, w]``, instead of encoding the masked image.
        height, width: of the result, multiples of 8; default the UNet's `sample_size` times 8.
        padding_mask_crop: work on the mask's surroundings, so many pixels around it, and lay the result over the
            original; PIL in, PIL out.
        strength: 0..1, how much of the schedule is walked; below 1 it starts from the noised picture.
        num_inference_steps, timesteps, sigmas: the schedule; the latter two where the scheduler takes them.
        guidance_scale: above 1 a second, unconditional pass a step pulls the result towards the text.
        eta: DDIM's η, 0..1.
        generator: torch.Generator on the CPU or the device, or a list of N.
        latents: ``[N, 4, h, w]`` start noise.
        prompt_embeds, negative_prompt_embeds: ``[B, L, D]``, instead of texts.
        ip_adapter_image: one entry for each IP-Adapter; ip_adapter_image_embeds: ``[1 or 2, images, …]`` for each, the
            negative half first under guidance.
        output_type: "pil", "np", "pt" or "latent".
        return_dict: False gives a plain tuple.
        cross_attention_kwargs: `scale` scales the LoRAs in this call, `ip_adapter_masks` (for each IP-Adapter
            ``[1, pictures, H, W]``) says where its pictures have a say.
        clip_skip: how many of CLIP's last layers to leave out.
        callback_on_step_end: see `callbacks`; callback: ``(step, timestep, latents)`` every `callback_steps` steps.

        Raises InvalidParameter with the argument's name, NonFiniteOutput when the models produce NaN or Inf,
        BlackOutput when the decoder produces nothing but zeros.
        """
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False
        names = wanted_tensors(callback_on_step_end, callback_on_step_end_tensor_inputs)
        is_count = callback_steps is None or (is_int(callback_steps) and callback_steps > 0)
        require(is_count, "callback_steps", f"has to be a positive integer, not {callback_steps!r}")
        request = self.prepare_request(
            prompt=prompt,
            image=image,
            mask_image=mask_image,
            masked_image_latents=masked_image_latents,
            height=height,
            width=width,
            padding_mask_crop=padding_mask_crop,
            strength=strength,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            output_type=output_type,
            cross_attention_kwargs=cross_attention_kwargs,
            clip_skip=clip_skip,
            keep_masked_image_latents="masked_image_latents" in names,
        )
        order, total = request.scheduler.order, request.num_timesteps
        self._num_timesteps = total
        steps = request.state.num_inference_steps - request.state.begin_index // order
        warmup = total - steps * order
        with self.progress_bar(total=steps) as bar, self.lora.scaled(request.lora_scale):
            while not request.done and not self.interrupt:
                i, timestep = request.step_index, request.scheduler.timestep(request.state)
                (request,) = denoise_step(self.unet, [request])
                if callback_on_step_end is not None:
                    request = changed(request, callback_on_step_end(self, i, timestep, view(request, names)))
                    request = with_guidance(request, self._guidance_scale, self.unet.config.time_cond_proj_dim)
                if i == total - 1 or (i + 1 > warmup and (i + 1) % order == 0):
                    bar.update()
                    if callback is not None and i % (callback_steps or 1) == 0:
                        callback(i // order, timestep, request.latents)
        output = self.finish_request(request)
        return output if return_dict else (output.images, output.nsfw_content_detected)

    def prepare_request(self, *, keep_masked_image_latents: bool = False, **arguments: Any) -> Request:
        """Check the arguments of `__call__` that shape the picture, encode what is to be encoded, draw the noise.

        `keep_masked_image_latents`: also for a UNet that does not read them. Raises InvalidParameter.
        """
        return self.begin(self.read_call(**arguments), keep_masked_image_latents=keep_masked_image_latents)

    def read_call(self, *, ip_adapters: int | None = None, **arguments: Any) -> Reading:
        """The same arguments checked and their pictures read, without a network: for any thread.

        `ip_adapters`: how many will be loaded when it begins; None: as many as now.
        """
        # numpy's numbers are numbers, too
        call = Call(
            **{key: value.item() if isinstance(value, np.generic) else value for key, value in arguments.items()}
        )
        if call.height is None or call.width is None:
            call = call.sized(default_sample_size(self.unet) * self.vae_scale_factor)
        self._is_plain()
        guided = self._is_guided(call)
        check(call, self._limits(guided, ip_adapters))
        return Reading(
            call, read_canvas(call, self.image_processor, self.mask_processor, self.vae.config.in_channels), guided
        )

    @torch.no_grad()
    def begin(
        self,
        reading: Reading,
        *,
        scheduler: Scheduler | None = None,
        texts: Texts | None = None,
        encode: Encode = latents_of,
        keep_masked_image_latents: bool = False,
    ) -> Request:
        """Encode what was read, and draw the noise.

        `scheduler`: instead of the pipeline's. `texts`: (positive, negative) embeddings, instead of encoding them.
        `encode`: what turns pictures into latents. Raises InvalidParameter.
        """
        call, canvas, guided = reading.call, reading.canvas, reading.guided
        scheduler = self.scheduler if scheduler is None else scheduler
        require_scheduler(scheduler)
        plain, device = self._is_plain(), self.device
        positive, negative = texts or self.encode_prompt(
            call.prompt,
            device,
            call.num_images_per_prompt,
            guided,
            call.negative_prompt,
            prompt_embeds=call.prompt_embeds,
            negative_prompt_embeds=call.negative_prompt_embeds,
            lora_scale=call.lora_scale,
            clip_skip=call.clip_skip,
        )
        images, no_images = prompt_tokens(call, self.unet, self.image_encoder, self.feature_extractor, guided)
        custom = call.timesteps is not None or call.sigmas is not None
        state = scheduler.start(
            None if custom else call.num_inference_steps,
            timesteps=call.timesteps,
            sigmas=call.sigmas,
            strength=call.strength,
            device=device,
        )
        factor = self.vae_scale_factor
        grid = prepare_grid(
            call,
            canvas,
            self.vae,
            scheduler,
            state,
            plain=plain,
            shape=(call.rows, self.vae.config.latent_channels, call.height // factor, call.width // factor),
            device=device,
            dtype=positive.dtype,
            keep_masked=keep_masked_image_latents or not plain,
            encode=encode,
        )
        conditioned = isinstance(self.vae, AsymmetricAutoencoderKL)
        return Request(
            scheduler=scheduler,
            state=state,
            prompt_embeds=positive,
            negative_prompt_embeds=negative if guided else None,
            guidance_scale=call.guidance_scale,
            generator=call.generator,
            eta=call.eta,
            lora_scale=call.lora_scale,
            timestep_cond=self._timestep_cond(call, grid.latents),
            ip_hidden_states=images,
            negative_ip_hidden_states=no_images,
            ip_adapter_masks=tuple(mask.to(device) for mask in call.ip_adapter_masks),
            pixels=canvas.image.to(device=device, dtype=positive.dtype) if conditioned else None,
            pixel_mask=canvas.mask.to(device=device, dtype=positive.dtype) if conditioned else None,
            overlay=overlay_of(call, canvas),
            output_type=call.output_type,
            **vars(grid),
        )

    def denoise_step(self, requests: Sequence[Request]) -> list[Request]:
        """Every request one step further; see `denoise.denoise_step`. All are of one LoRA scale."""
        scales = {request.lora_scale for request in requests}
        require(len(scales) == 1, "requests", f"have to be of one LoRA scale to share a step, not {len(scales)}")
        with self.lora.scaled(*scales):
            return denoise_step(self.unet, requests)

    @torch.no_grad()
    def finish_request(self, request: Request) -> StableDiffusionPipelineOutput:
        """Decode, judge and hand out. Raises NonFiniteOutput for a NaN or Inf in latents or picture, BlackOutput for a
        picture that is zero everywhere."""
        if request.output_type == "latent":
            return StableDiffusionPipelineOutput(require_finite(request.latents, "the UNet's latents hold"))
        return self.hand_out(request, *self.judge(request, decode(self.vae, request)))

    def judge(self, request: Request, pictures: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        """What the safety checker says of decoded `pictures` ``[N, 3, H, W]``: see `run_safety_checker`."""
        return self.run_safety_checker(pictures, request.prompt_embeds.dtype)

    def hand_out(
        self, request: Request, decoded: torch.Tensor, flags: list[bool] | None
    ) -> StableDiffusionPipelineOutput:
        """Judged pictures ``[N, 3, H, W]`` in −1..1 as the call wanted them: for any thread."""
        whole = None if flags is None else [not flag for flag in flags]
        images = self.image_processor.postprocess(decoded, request.output_type, do_denormalize=whole)
        if (over := request.overlay) is not None:
            images = [self.image_processor.apply_overlay(over.mask, over.image, one, over.box) for one in images]
        return StableDiffusionPipelineOutput(images, flags)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(positive, negative) text embeddings, ``[B·num_images_per_prompt, L, D]`` each; see `prompts`."""
        reference = self.text_encoder if self.text_encoder is not None else self.unet
        with self.lora.scaled(lora_scale):
            return prompts.encode_prompt(
                self.tokenizer,
                self.text_encoder,
                prompt,
                negative_prompt,
                prompt_embeds,
                negative_prompt_embeds,
                num_images_per_prompt=num_images_per_prompt,
                guided=do_classifier_free_guidance,
                clip_skip=clip_skip,
                device=torch.device(device),
                dtype=reference.dtype,
            )

    def run_safety_checker(self, image: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, list[bool] | None]:
        """Pictures ``[N, 3, H, W]`` in −1..1 with flagged ones black, and the flags; untouched without a checker."""
        if self.safety_checker is None:
            return image, None
        pictures = self.image_processor.postprocess(image, output_type="pil")
        pixels = self.feature_extractor(pictures, return_tensors="pt").pixel_values
        return self.safety_checker(clip_input=pixels.to(image.device, dtype), images=image)

    def get_guidance_scale_embedding(
        self, w: torch.Tensor, embedding_dim: int = 512, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """``[len(w), embedding_dim]``; see `guidance.guidance_scale_embedding`."""
        return guidance_scale_embedding(w, embedding_dim, dtype)

    def _is_plain(self) -> bool:
        """Whether the UNet knows nothing of masks, so that the kept region is put back after every step."""
        channels, given = self.vae.config.latent_channels, self.unet.config.in_channels
        rule = f"should have {channels} or {2 * channels + 1} input channels, not {given}"
        require(given in (channels, 2 * channels + 1), "unet", rule)
        return given == channels

    def _is_guided(self, call: Call) -> bool:
        numeric = isinstance(call.guidance_scale, int | float)
        return numeric and is_guided(call.guidance_scale, self.unet.config.time_cond_proj_dim)

    def _limits(self, guided: bool, ip_adapters: int | None) -> Limits:
        return Limits(
            vae_scale_factor=self.vae_scale_factor,
            latent_channels=self.vae.config.latent_channels,
            cross_attention_dim=self.unet.config.cross_attention_dim,
            text_layers=None if self.text_encoder is None else self.text_encoder.config.num_hidden_layers,
            ip_adapters=len(self.unet.ip_adapters) if ip_adapters is None else ip_adapters,
            guided=guided,
        )

    def _timestep_cond(self, call: Call, latents: torch.Tensor) -> torch.Tensor | None:
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        scales = torch.tensor(call.guidance_scale - 1).repeat(call.rows)
        return self.get_guidance_scale_embedding(scales, embedding_dim=width).to(latents.device, latents.dtype)
