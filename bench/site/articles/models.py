from django.db import models


class Article(models.Model):
    title = models.CharField(max_length=100)
    body = models.TextField()
    price = models.DecimalField(max_digits=8, decimal_places=2)
    published = models.DateTimeField()
