"""What can go wrong that is no fault of this code, in two families: each is told in one line and has its exit code.

    InputError    what was given cannot be taken: a name, a file, a setting              exit code 2
    UnableError   what was given is right, but this model or machine cannot do it        exit code 4
        MethodError   a method found no change for this request; others may well work

Whatever is raised and stands in neither family (and is no OSError) is a fault of this code, or of an extension: exit
code 70. Errors keep a builtin base too (ValueError, RuntimeError …), so that `except ValueError` catches them.
"""

from __future__ import annotations


class EditkitError(Exception):
    """Something that the user can mend; the message names the thing, the place and the way out."""


class InputError(EditkitError, ValueError):
    """What was given cannot be taken."""


class UnableError(EditkitError):
    """What was given is right, but this model or this machine cannot do it."""


class MethodError(UnableError):
    """A method that found no change for a request on this model. Nothing is wrong with other requests."""


class PatchError(InputError):
    """A patch that does not fit: wrong base model, unknown parameter, wrong shape, values that are not finite."""
