"""A farm in memory, for the tests of programs that use the SDK: no Redis, no store, no model, no waiting.

    from producer.testing import FakeFarm

    def test_my_catalogue_run():
        farm = FakeFarm()
        photo, mask = farm.photo("sku-1.png"), farm.mask("sku-1-mask.png")
        farm.fail("sku-2", "NsfwContent")
        results = list(farm.client().map([InpaintJob(custom_id="sku-1", image=photo, mask=mask), …]))

The client is the real one, with the same checks and the same results; only what lies behind it is small. A render is
deterministic, changes every pixel inside of the mask and none outside, and takes no time.
"""

from producer.testing.farm import FakeFarm

__all__ = ["FakeFarm"]
