"""Lowering: the form in which each grouped layer is written to ONNX. numpy and onnx alone, so that devices can do it.

`layers` finds the grouped layers of a model, `forms` writes one of them in another form, `gathers` moves what Gathers
remain into weights, `model` does so for a whole network, `costs` predicts what each form costs on a device, and
`record` is what a bundle keeps of the choice. All forms compute the same function, to rounding.
"""
