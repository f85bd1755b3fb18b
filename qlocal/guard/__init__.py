"""A helper process for what strangers wrote: chat templates and vocabularies run there, under limits.

`client` is the door for the rest of the program; everything else here runs in the helper.
"""
