"""Pretrained networks in transformers' classes.  Only this folder and models/hub.py import transformers."""
