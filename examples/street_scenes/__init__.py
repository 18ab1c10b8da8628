"""Procedural, labelled street scenes in two domains, for demonstrations and tests of CoRTe."""
