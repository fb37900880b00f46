"""A farm in memory, for the tests of programs that use the SDK: no Redis, no store, no model, no waiting.

    from producer.testing import FakeFarm

    def test_my_catalogue_run():
        farm = FakeFarm()
        photo, mask = farm.photo("sku-1.png"), farm.mask("sku-1-mask.png")
        farm.fail("sku-2", "NsfwContent")
        results = list(farm.client().map([InpaintJob(custom_id="sku-1", image=photo, mask=mask), …]))

The client is the real one, with the same checks and the same results; only what lies behind it is small. A render is
deterministic and takes no time. It changes every pixel inside of the mask and none outside, where the mask is what
`mask_polarity`, the image's own transparency, `fill_holes` and `paste` say (without `preserve_unmasked` it is the whole
picture); what it paints there follows from the seed and from every field that shapes a picture.

What is otherwise than on a farm:

- pictures are written as RGB of 8 bits, without alpha, profile and metadata; a warning in the result says where the
  source had more than that. AVIF loses a little at quality 100, too
- nothing is feathered (`mask_blur`), and `grow_mask` counts in the picture's own pixels
- the gate does not look: no scores, no `needs_review`, no other seed
- every `model` is rendered; whether a LoRA fits is known where a model's card was put into `farm.store`
- webhooks are checked and not called; what is transient is tried again at once
"""

from producer.testing.farm import FakeFarm

__all__ = ["FakeFarm"]
