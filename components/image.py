"""The image that the components run in, until a pipeline is compiled for another one.

KFP fixes the image when it compiles. `streamway compile --image` writes yours, by tag or digest, in place of this
one; see launch/compile.py.
"""

IMAGE = "streamway:0.1.0"
