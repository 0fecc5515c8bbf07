"""What every test starts from, whichever way the tests themselves were started."""

import signal

# A shell that runs the tests in the background has them ignore Ctrl-C, and every process that they start would inherit
# that, also those whose answer to Ctrl-C is what a test looks at.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
