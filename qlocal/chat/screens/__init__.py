"""The screens: each composes widgets and routes messages, with its stylesheet beside it."""
