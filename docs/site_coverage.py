"""The page of what surgery and the optimizer wrappers cover, from the tables that the code itself and the tests use."""
def page(): return "# Coverage\n"
