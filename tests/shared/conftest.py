"""Settings of these tests."""

from hypothesis import settings

# A loaded machine is no failure; what must be quick has its own test.
settings.register_profile("covey", deadline=None)
settings.load_profile("covey")
